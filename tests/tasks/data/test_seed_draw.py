"""Seed labels by rule: hand-counted draws, and what holds for any data."""

from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.image_record import ImageRecord
from tasks.data.schemas import Box
from tasks.data.seed_draw import BoxesPerClass, ImagePercent, draw_seed
from tasks.runtime.errors import UserError


class Labeled:
    """Stands for an image with boxes; the draw looks at nothing else."""

    def __init__(self, number: int, categories: str) -> None:
        self.number = number
        self.boxes = [Box(category=name, xyxy_px=(0, 0, 1, 1)) for name in categories] or None


def images(*categories: str) -> list[ImageRecord]:
    return cast("list[ImageRecord]", [Labeled(number, names) for number, names in enumerate(categories)])


def numbers(drawn: list[ImageRecord]) -> list[int]:
    return [cast("Any", record).number for record in drawn]


def test_rare_classes_have_their_turn_first_and_bring_the_frequent_ones() -> None:
    # c: 2 boxes, b: 3, a: 7. c takes 4 and 5, whose boxes are b, c and c; b lacks one and takes 1; a has 2 by then.
    found = images("aa", "aab", "a", "b", "bc", "c", "aa")
    assert numbers(draw_seed(found, BoxesPerClass(2), "here")) == [1, 4, 5]
    assert numbers(draw_seed(found, BoxesPerClass(1), "here")) == [0, 4]


def test_a_share_takes_the_first_images_and_one_at_least() -> None:
    found = images(*["a"] * 40)
    for percent, expected in ((0.1, 1), (10, 4), (99, 40)):
        assert numbers(draw_seed(found, ImagePercent(percent), "here")) == list(range(expected))


def test_too_few_boxes_are_refused_with_their_classes() -> None:
    with pytest.raises(UserError, match="here: boxes besides validation and calibration are 1 of 'b', expected at lea"):
        draw_seed(images("aaa", "ab"), BoxesPerClass(2), "here")
    with pytest.raises(UserError, match="calibration are 0, expected at least 1 of every class"):
        draw_seed(images("", ""), BoxesPerClass(1), "here")


@given(st.lists(st.text("abcd", max_size=5), min_size=1, max_size=20), st.integers(1, 4))
def test_every_class_has_enough_and_no_image_could_be_left_out_for_all(found: list[str], wanted: int) -> None:
    available = Counter("".join(found))
    if not available or min(available.values()) < wanted:
        with pytest.raises(UserError):
            draw_seed(images(*found), BoxesPerClass(wanted), "here")
        return
    chosen = numbers(draw_seed(images(*found), BoxesPerClass(wanted), "here"))
    drawn = Counter("".join(found[number] for number in chosen))
    assert all(drawn[name] >= wanted for name in available)
    assert chosen == sorted(set(chosen))
    # Each image was taken for a class that lacked boxes: no class has them all from others that came before.
    assert len(chosen) <= wanted * len(available)
