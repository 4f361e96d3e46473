"""``plot.svg`` and ``plot.png``: teacher mAP against labels, one line per arm, with intervals."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks import files
from tasks.study.plan import EQUAL, RANDOM
from tasks.study.results import ArmResult, StudyResults
from tasks.study.statistics import paired_bootstrap

_STYLE: dict[Any, Any] = {"svg.hashsalt": "gleaner", "svg.fonttype": "none", "font.size": 11}
_REFERENCE_COLOURS = {RANDOM: "#777777", EQUAL: "#000000"}
_SHIFT = 0.006
"""Of the range of labels: keeps the bars of two arms apart."""


def draw(results: StudyResults, folder: Path) -> None:
    """Write both files.

    Bars are bootstrap intervals of the mean over seeds and validation images; pairing makes differences surer.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="images labeled (mean over seeds)", ylabel="teacher mAP in percent")
        complete = {name: arm for name, arm in results.arms.items() if arm.curves}
        spread = max((curve.labels[-1] for arm in complete.values() for curve in arm.curves.values()), default=1.0)
        for position, (name, arm) in enumerate(complete.items()):
            _line(axes, name, arm, shift=(position - len(complete) / 2) * _SHIFT * spread)
        if results.full_map:
            level = float(np.mean(list(results.full_map.values())))
            axes.axhline(level, color="#777777", linewidth=1, linestyle=":", label="all labels")
        axes.grid(axis="y", linewidth=0.5)
        if complete:
            figure.legend(loc="outside right upper", fontsize=9)
        formats: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 120}}
        for ending, options in formats.items():
            with files.replacing(folder / f"plot.{ending}") as temporary:
                figure.savefig(temporary, format=ending, **options)


def _line(axes: Axes, name: str, arm: ArmResult, *, shift: float) -> None:
    labels_SR = np.array([curve.labels for curve in arm.curves.values()])  # seeds x rounds
    values_SR = np.array([curve.values for curve in arm.curves.values()])
    mean_R = values_SR.mean(axis=0)
    drawn = [list(zip(*curve.drawn, strict=True)) for curve in arm.curves.values()]  # by seed, then round
    bars = [
        paired_bootstrap(column.tolist(), seed=0, redrawn=[rounds[number] for rounds in drawn] if all(drawn) else ())
        for number, column in enumerate(values_SR.T)
    ]
    error_2R = np.array(
        [[0.0, 0.0] if bar is None else [m - bar.low, bar.high - m] for m, bar in zip(mean_R, bars, strict=True)]
    ).T
    axes.errorbar(
        labels_SR.mean(axis=0) + shift,
        mean_R,
        yerr=np.maximum(error_2R, 0),
        label=name,
        color=_REFERENCE_COLOURS.get(name),
        linestyle="--" if name in _REFERENCE_COLOURS else "-",
        marker="o",
        markersize=4,
        capsize=2,
        linewidth=1.4,
    )
