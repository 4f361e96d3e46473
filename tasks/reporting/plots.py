"""Draw figures as SVG that takes colors and font from the page, so that one drawing fits light and dark mode."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Colors Matplotlib writes into the SVG, and the variables of style.css.j2 that replace them there.
_INK, _MUTED, _LINE = "#010101", "#010102", "#010103"
COLORS = {
    "teacher": "#010104",
    "student": "#010105",
    "confidence": "#010106",
    "entropy": "#010107",
    "overlap": "#010108",
    "learned": "#010109",
    "equal": "#01010a",
    "picked": "#01010b",
    "explored": "#01010c",
    "pool": "#01010d",
    "mAP": "#010112",
    "AP50": "#010110",
    "AP75": "#010111",
    "supervised": "#01010e",
    "unsupervised": "#01010f",
    "objectness_entropy": "#010113",
}
_VARIABLES = {_INK: "ink", _MUTED: "muted", _LINE: "line", **{value: name for name, value in COLORS.items()}}
_SVG_CLEANUP = [
    (re.compile(pattern, re.DOTALL), instead)
    for pattern, instead in (
        (r"<metadata>.*?</metadata>", ""),
        (r"<style.*?</style>", ""),  # `*{...}`: it would reach out of the figure and style the whole page
        (r' id="[a-z0-9_.]+_\d+"', ""),  # figure_1, axes_1, ...: the same in every figure
        (r"xlink:href", "href"),
        (r"font: ([\d.]+px)[^;\"]*", r"font-size: \1"),
        (r"font-family: [^;\"]*; ", ""),
        (r' transform="rotate\(-0 [^"]*"', ""),
        (r"\s*\n\s*", " "),
    )
]
_MARKERS = {
    "student": "s",
    "entropy": "s",
    "overlap": "^",
    "objectness_entropy": "D",
    "equal": "s",
    "AP50": "^",
    "AP75": "s",
}  # others: o
_DASHES = {"student": "--", "equal": "--", "AP50": "--", "AP75": ":"}
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _MUTED,
    "axes.labelpad": 7,
    "axes.labelsize": 12,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0.04,
    "figure.facecolor": "none",
    "font.size": 12,
    "grid.color": _LINE,
    "grid.linewidth": 1,
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
    "lines.markersize": 6.5,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "gleaner",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.color": _MUTED,
    "ytick.major.size": 0,
}

_WIDE_INCHES = (430 / 72, 250 / 72)
_NARROW_INCHES = (310 / 72, 205 / 72)

Series = Sequence[float | None]


def progress(labels: Sequence[int], curves: Mapping[str, Series], *, y: str, alt: str) -> Markup:
    """Plot percent against the number of labeled images."""
    return _lines(labels, curves, x="images labeled", y=y, alt=alt)


def correlations(rounds: Sequence[int], curves: Mapping[str, Series], *, alt: str) -> Markup:
    """Plot the Spearman rank correlation by round; a round without a value leaves a gap."""
    return _lines(rounds, curves, x="round", y="rank correlation", alt=alt, reference=0.0)


def weights(
    rounds: Sequence[int], means: Mapping[str, Series], bands: Mapping[str, Sequence[Series]], *, alt: str
) -> Markup:
    """Plot the mean metric weight by round, with the band of the middle 80 % of the images."""
    return _lines(rounds, means, x="round", y="weight", alt=alt, bands=bands, reference=1 / len(means))


def training(iterations: Sequence[int], curves: Mapping[str, Series], *, y: str, alt: str) -> Markup:
    """Plot training curves, which are already smoothed."""
    return _lines(iterations, curves, x="iteration", y=y, alt=alt, markers=False, from_zero=True)


def _lines(
    x_values: Sequence[int],
    curves: Mapping[str, Series],
    *,
    x: str,
    y: str,
    alt: str,
    bands: Mapping[str, Sequence[Series]] | None = None,
    reference: float | None = None,
    markers: bool = True,
    from_zero: bool = False,
) -> Markup:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_WIDE_INCHES, layout="constrained")
        axes = figure.add_subplot(xlabel=x, ylabel=y)
        for name, (low, high) in (bands or {}).items():
            axes.fill_between(
                x_values, _none_to_nan(low), _none_to_nan(high), color=COLORS[name], alpha=0.16, linewidth=0
            )
        if reference is not None:
            axes.axhline(reference, color=_MUTED, linewidth=1, dashes=(4, 3))
        for name, values in curves.items():
            marker = _MARKERS.get(name, "o") if markers else None
            axes.plot(
                x_values, _none_to_nan(values), color=COLORS[name], marker=marker, linestyle=_DASHES.get(name, "-")
            )
        _ticks(axes, x_values)
        if from_zero:
            axes.set_ylim(bottom=0)
        return _svg(figure, alt)


def _ticks(axes: Axes, x_values: Sequence[int]) -> None:
    """Put a tick at every point where they are few, else at round numbers; points without a value count too."""
    margin = 0.04 * (x_values[-1] - x_values[0])
    if margin:
        axes.set_xlim(x_values[0] - margin, x_values[-1] + margin)
    if len(x_values) <= 8:
        axes.set_xticks(x_values)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


def histogram(values: Sequence[float], *, x: str, color: str, alt: str) -> Markup:
    """Plot the histogram of one quantity over the pool."""
    return _histogram({color: values}, x=x, alt=alt, size=_NARROW_INCHES)


def stacked_histogram(parts: Mapping[str, Sequence[float]], *, x: str, alt: str) -> Markup:
    """Plot the histogram of one quantity over the pool, stacked by what happened to the images."""
    return _histogram(parts, x=x, alt=alt, size=_WIDE_INCHES)


def _histogram(parts: Mapping[str, Sequence[float]], *, x: str, alt: str, size: tuple[float, float]) -> Markup:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot(xlabel=x, ylabel="images")
        bins = _bins([value for values in parts.values() for value in values])
        colors = [COLORS[name] for name in parts]
        axes.hist(list(parts.values()), bins=bins, color=colors, stacked=True, rwidth=0.9)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        return _svg(figure, alt)


def _bins(values: Sequence[float]) -> Sequence[float]:
    """Return equal bins from at most 0 to the largest value; equal values still give one visible bar."""
    low, high = min(0.0, *values, 0.0), max(*values, 0.0, 1e-9)
    count = 24 if len(values) > 60 else 12
    return [low + (high - low) * i / count for i in range(count + 1)]


def _none_to_nan(values: Series) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _svg(figure: Figure, alt: str) -> Markup:
    """Return the figure's SVG for use inside HTML: without size, font and ids, colors by name."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    view_box = re.search(r'viewBox="([^"]+)"', text)
    assert view_box is not None
    body = text[text.index(">", text.index("<svg")) + 1 :]
    for pattern, replacement in _SVG_CLEANUP:
        body = pattern.sub(replacement, body)
    for color, name in _VARIABLES.items():
        body = body.replace(color, f"var(--{name})")
    prefix = hashlib.sha256(body.encode()).hexdigest()[:8]  # what is left of ids is unique within a figure only
    body = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>f{prefix}-", body)
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(view_box[1], alt)
    return head + Markup(body)  # our own drawing; Matplotlib escapes the text in it
