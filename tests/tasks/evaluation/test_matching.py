"""Boxes laid over each other: the best pairing, by trying them all, and doubles."""

from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.schemas import Box
from tasks.evaluation.matching import MATCH_IOU, match_boxes


def make_box(x1: float, y1: float, x2: float, y2: float, category: str = "cat") -> Box:
    return Box(category=category, xyxy_px=(x1, y1, x2, y2))


def box_iou(a: Box, b: Box) -> float:
    """Written out, with no array in sight."""
    width = min(a.xyxy_px[2], b.xyxy_px[2]) - max(a.xyxy_px[0], b.xyxy_px[0])
    height = min(a.xyxy_px[3], b.xyxy_px[3]) - max(a.xyxy_px[1], b.xyxy_px[1])
    shared = max(width, 0) * max(height, 0)
    area = sum((x.xyxy_px[2] - x.xyxy_px[0]) * (x.xyxy_px[3] - x.xyxy_px[1]) for x in (a, b))
    return shared / (area - shared)


@pytest.mark.parametrize(
    ("second", "pairs"),
    [
        (make_box(0, 0, 10, 10), [(0, True)]),
        (make_box(0, 0, 10, 5), [(0, True)]),  # exactly one half
        (make_box(0, 0, 10, 4.9), []),
        (make_box(0, 0, 10, 10, "dog"), [(0, False)]),
        (make_box(20, 0, 30, 10), []),
    ],
)
def test_one_box(second: Box, pairs: list[tuple[int, bool]]) -> None:
    found = match_boxes([make_box(0, 0, 10, 10)], [second])
    assert [(pair.second, pair.same_class) for pair in found] == pairs
    assert all(pair.iou == pytest.approx(box_iou(make_box(0, 0, 10, 10), second)) for pair in found)


def test_the_own_class_goes_before_a_better_fit() -> None:
    found = match_boxes([make_box(0, 0, 10, 10)], [make_box(0, 0, 10, 10, "dog"), make_box(0, 0, 10, 9)])
    assert [(pair.first, pair.second, pair.same_class) for pair in found] == [(0, 1, True)]


small = st.builds(
    lambda x, y, w, h, c: make_box(x, y, x + w, y + h, c),
    st.integers(0, 4), st.integers(0, 4), st.integers(2, 6), st.integers(2, 6), st.sampled_from(["cat", "dog"]),
)  # fmt: skip


def best_total_iou(first: Sequence[Box], second: Sequence[Box]) -> float:
    """Of IoU within a class, over every way of pairing."""
    longer, shorter = sorted((first, second), key=len, reverse=True)
    sums = (
        sum(
            value
            for a, b in zip(order, shorter, strict=False)
            if a.category == b.category and (value := box_iou(a, b)) >= MATCH_IOU
        )
        for order in permutations(longer, len(shorter))
    )
    return max(sums, default=0.0)


@given(st.lists(small, max_size=4), st.lists(small, max_size=4))
def test_no_other_pairing_within_the_classes_is_better(first: list[Box], second: list[Box]) -> None:
    found = match_boxes(first, second)
    assert len({pair.first for pair in found}) == len({pair.second for pair in found}) == len(found)
    for pair in found:
        a, b = first[pair.first], second[pair.second]
        assert pair.iou == pytest.approx(box_iou(a, b))
        assert pair.iou >= MATCH_IOU
        assert pair.same_class == (a.category == b.category)
    assert sum(pair.iou for pair in found if pair.same_class) == pytest.approx(best_total_iou(first, second))
    assert len(match_boxes(second, first)) >= sum(pair.same_class for pair in found)
