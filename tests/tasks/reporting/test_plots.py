"""Figures take everything from the page, and survive what real figures look like."""

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.reporting import plots

optional_floats = st.one_of(st.none(), st.floats(-1, 100))


def parse_svg(drawing: str) -> ET.Element:
    return ET.fromstring(drawing)


@given(st.lists(st.tuples(optional_floats, optional_floats), min_size=1, max_size=30))
@settings(max_examples=15, deadline=None)
def test_any_series_draws_with_gaps_and_single_points(values):
    rounds = list(range(len(values)))
    curves = {"learned": [pair[0] for pair in values], "equal": [pair[1] for pair in values]}
    root = parse_svg(plots.correlations(rounds, curves, alt="two lines"))
    assert root.attrib["aria-label"] == "two lines"


@pytest.mark.parametrize("values", [[], [0.0], [0.5] * 40, [-1.0, 2.0], [1e-12, 0.0]])
def test_any_distribution_draws(values):
    parse_svg(plots.histogram(values, x="entropy", color="entropy", alt="a histogram"))


def test_colors_and_fonts_come_from_the_page():
    drawing = plots.progress([1, 2], {"teacher": [1.0, 2.0], "student": [2.0, 1.0]}, y="mAP", alt="two lines")
    assert "var(--teacher)" in drawing
    assert "var(--student)" in drawing
    assert not re.search(r": #[0-9a-f]{6}", drawing)
    assert "font-family" not in drawing
    assert "<style" not in drawing  # it would style the whole page
    assert "http" not in drawing


def test_every_color_is_a_variable_of_the_style_sheet():
    style = (plots.__file__.rsplit("/", 1)[0]) + "/style.css.j2"
    with open(style) as stream:
        text = stream.read()
    for name in (*plots.COLORS, "ink", "muted", "line"):
        assert f"--{name}:" in text, name


def test_ids_of_two_figures_do_not_collide():
    drawings = [
        plots.training([1, 2, 3], {"supervised": [1.0, 0.5, last]}, y="loss", alt="loss") for last in (0.4, 0.3)
    ]
    ids = [re.findall(r' id="([^"]+)"', drawing) for drawing in drawings]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    for own, drawing in zip(ids, drawings, strict=True):
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', drawing)
        assert {a or b for a, b in used} <= set(own)


def test_alt_text_is_escaped():
    drawing = plots.histogram([1.0], x="x", color="entropy", alt='"><script>')
    assert "<script>" not in drawing
    assert parse_svg(drawing).attrib["aria-label"] == '"><script>'


def test_same_figures_give_the_same_drawing():
    def draw() -> str:
        return plots.stacked_histogram(
            {"picked": [0.9], "explored": [0.2], "pool": [0.1, 0.5]}, x="uncertainty", alt="x"
        )

    assert draw() == draw()
