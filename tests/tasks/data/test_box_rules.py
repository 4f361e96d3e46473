import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.data import box_rules
from tasks.data.box_rules import BoxResult, BoxRules, check_boxes

RULES = BoxRules(min_side_px=2.0, duplicate_iou=0.95)
nan, inf = float("nan"), float("inf")


def results(*boxes: tuple[float, ...], names: str | None = None) -> list[str]:
    checked = check_boxes(boxes, list(names or "a" * len(boxes)), 96, 72, RULES)
    assert sum(checked.counts().values()) == len(boxes)
    for row, result in enumerate(checked.result_N.tolist()):
        assert (checked.message(row) is None) == BoxResult(result).is_kept == bool(checked.kept_N[row])
    return [BoxResult(result).words for result in checked.result_N.tolist()]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 12, 30, 27), "kept"),
        ((0, 0, 96, 72), "kept"),
        ((-1, -0.5, 97, 73), "clipped"),
        ((-1.01, 0, 20, 20), "outside"),
        ((0, 0, 20, 73.5), "outside"),
        ((100, 5, 120, 20), "outside"),
        ((nan, 0, 20, 20), "not finite"),
        ((0, 0, inf, 20), "not finite"),
        ((30, 12, 30, 27), "no area"),
        ((30, 12, 10, 27), "no area"),
        ((50, 20, 50.000001, 29), "too small"),
        ((80, 20, 80.4, 20.3), "too small"),
        ((0.25, 0.5, 0.4, 0.75), "too small"),
        ((95.5, 0, 97, 20), "too small"),
    ],
)
def test_each_rule(box: tuple[float, ...], expected: str) -> None:
    assert results(box) == [expected]


def test_clipped_boxes_lie_inside_and_refused_ones_are_as_stated() -> None:
    checked = check_boxes([(-1, -0.5, 97, 73), (200, 0, 220, 20)], ["a", "b"], 96, 72, RULES)
    assert checked.xyxy_N4.tolist() == [[0, 0, 96, 72], [200, 0, 220, 20]]
    assert checked.message(1) == "a box of b is [200, 0, 220, 20], expected inside the image of 96 x 72 px"


def test_doubles_are_dropped_once_and_per_class() -> None:
    box, near, far = (10, 12, 50, 60), (10.2, 12, 50, 60), (14, 12, 50, 60)
    assert results(box, near, far, box) == ["kept", "duplicate", "kept", "duplicate"]
    assert results(box, box, names="ab") == ["kept", "kept"]
    checked = check_boxes([far, box, near], ["a"] * 3, 96, 72, RULES)
    assert checked.duplicate_of_N.tolist() == [-1, -1, 1]
    assert "which is there already" in str(checked.message(2))


def test_a_refused_box_does_not_drop_another() -> None:
    assert results((10, 12, 99, 60), (10, 12, 96, 60)) == ["outside", "kept"]


def test_many_images_are_checked_at_once() -> None:
    boxes = [(10, 12, 50, 60), (10, 12, 50, 60), (10, 12, 50, 60), (10, 12, 50, 70)]
    numbers = np.zeros(4, dtype=np.int32)
    checked = check_boxes(boxes, numbers, [96, 96, 40, 96], [72, 72, 72, 64], images=[0, 0, 1, 2], names=["bolt"])
    assert [BoxResult(r).words for r in checked.result_N.tolist()] == ["kept", "duplicate", "outside", "outside"]
    assert "a box of bolt" in str(checked.message(2))
    assert not len(check_boxes([], [], 96, 72).result_N)
    with pytest.raises(ValueError, match="2 categories for 1 boxes"):
        check_boxes(boxes[:1], ["a", "b"], 96, 72)


def reference(boxes: list[tuple[float, float, float, float]], iou: float) -> list[int]:
    """The slow rule: each box against all kept ones before it."""
    kept: list[int] = []
    dropped = []
    for n, (x1, y1, x2, y2) in enumerate(boxes):
        for k in kept:
            a1, b1, a2, b2 = boxes[k]
            inter = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
            union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inter
            if inter > iou * union or boxes[k] == boxes[n]:
                dropped.append(n)
                break
        else:
            kept.append(n)
    return dropped


edges = st.integers(0, 12)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w + 3.0, y + h + 3.0), edges, edges, edges, edges)


@given(st.lists(boxes, max_size=30), st.sampled_from([0.3, 0.5, 0.75, 0.95, 1.0]), st.booleans())
def test_doubles_are_those_of_the_slow_rule(found: list[tuple[float, ...]], iou: float, is_crowded: bool) -> None:
    drawn = found * 5 if is_crowded else found
    checked = check_boxes(drawn, ["a"] * len(drawn), 100, 100, BoxRules(duplicate_iou=iou))
    assert np.flatnonzero(checked.result_N == BoxResult.DUPLICATE).tolist() == reference(drawn, iou)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_size_of_a_chunk_changes_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    corners = rng.uniform(-5, 100, (300, 2))
    found = np.repeat(np.c_[corners, corners + rng.uniform(-1, 30, (300, 2))], 2, axis=0)
    found[::10] += 0.1
    images = np.arange(600) // 50
    whole = check_boxes(found, ["a"] * 600, 100, 100, RULES, images=images)
    monkeypatch.setattr(box_rules, "_CHUNK", chunk)
    pieces = check_boxes(found, ["a"] * 600, 100, 100, RULES, images=images)
    assert {int(result) for result in whole.result_N} >= {int(BoxResult.KEPT), int(BoxResult.DUPLICATE)}
    for name in ("xyxy_N4", "result_N", "duplicate_of_N"):
        assert np.array_equal(getattr(pieces, name), getattr(whole, name), equal_nan=name == "xyxy_N4")


@example([(0.0, -1.7976931348623157e308, 0.0, 1e292)])  # whose height is no finite number
@given(st.lists(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 4), max_size=8))
def test_whatever_the_numbers_are_each_box_has_a_result(found: list[tuple[float, ...]]) -> None:
    results(*found)


@pytest.mark.parametrize("layout", ["spread", "column", "heap"])
def test_6000_boxes_of_one_image_take_less_than_two_seconds(layout: str) -> None:
    rng = np.random.default_rng(7)
    corners = rng.uniform(0, 9000, (6000, 2))
    found = np.c_[corners, corners + rng.uniform(5, 60, (6000, 2))]
    if layout == "column":
        found[:, 0], found[:, 2] = 5, 50
    if layout == "heap":
        found = found[:1] + rng.uniform(0, 0.01, (6000, 4))
    started = time.process_time()
    kept = int(check_boxes(found, ["a"] * 6000, 10_000, 10_000, RULES).kept_N.sum())
    assert time.process_time() - started < 2
    assert kept == 1 if layout == "heap" else kept > 5000
