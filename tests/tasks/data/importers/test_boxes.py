"""The one rule for boxes that come in."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.importers.boxes import CLIP_TOLERANCE_PX, BoxProblem, validate_box, validate_class_name

corner = st.floats(-200, 400, allow_nan=False) | st.sampled_from([0.0, -1.0, 100.0, 101.0, 80.0, 81.0])


@given(corners=st.tuples(corner, corner, corner, corner))
def test_what_passes_lies_inside_and_moved_by_a_pixel_at_most(
    corners: tuple[float, float, float, float],
) -> None:
    try:
        box, clipped = validate_box("a", corners, 100, 80)
    except BoxProblem:
        x1, y1, x2, y2 = corners
        comfortable = 0 <= x1 <= x2 - 1 and x2 <= 100 and 0 <= y1 <= y2 - 1 and y2 <= 80
        assert not comfortable
        return
    x1, y1, x2, y2 = box.xyxy_px
    assert 0 <= x1 < x2 <= 100
    assert 0 <= y1 < y2 <= 80
    assert max(abs(a - b) for a, b in zip(box.xyxy_px, corners, strict=True)) <= CLIP_TOLERANCE_PX
    assert clipped == (box.xyxy_px != corners)


@pytest.mark.parametrize(
    ("corners", "problem"),
    [
        ((10, 10, 10, 20), "no area"),
        ((10, 20, 20, 10), "no area"),
        ((math.nan, 0, 10, 10), "finite"),
        ((0, 0, math.inf, 10), "finite"),
        ((-1.5, 0, 10, 10), "inside the image"),
        ((90, 0, 101.1, 10), "inside the image"),
        ((100, 0, 101, 10), "no area"),
    ],
)
def test_refused_boxes_are_told_apart(corners: tuple[float, float, float, float], problem: str) -> None:
    with pytest.raises(BoxProblem, match=problem):
        validate_box("a", corners, 100, 80)


def test_class_names_lose_blanks_and_refuse_control_characters() -> None:
    assert validate_class_name("  two words ") == "two words"
    for name in ("", "   ", "a\nb", "x" * 101):
        with pytest.raises(BoxProblem, match="class name"):
            validate_class_name(name)


@pytest.mark.parametrize(("corners", "passes"), [((98, 10, 101, 20), True), ((99, 10, 101, 20), False)])
def test_the_shortest_side_is_measured_inside_the_image(
    corners: tuple[float, float, float, float], passes: bool
) -> None:
    if passes:
        assert validate_box("a", corners, 100, 80, min_box_side_px=2.0)[1]
    else:
        with pytest.raises(BoxProblem, match="1 x 10 px, expected sides of at least 2 px"):
            validate_box("a", corners, 100, 80, min_box_side_px=2.0)
