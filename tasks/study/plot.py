"""``plot.svg`` and ``plot.png``: teacher mAP against labels, one line per arm, with intervals."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.storage import files
from tasks.study.plan import EQUAL, RANDOM
from tasks.study.results import ArmResult, StudyResults
from tasks.study.statistics import paired_bootstrap

_STYLE: dict[Any, Any] = {"svg.hashsalt": "gleaner", "svg.fonttype": "none", "font.size": 11}
_BASELINE_COLORS = {RANDOM: "#777777", EQUAL: "#000000"}
_X_OFFSET_FRAC = 0.006
"""Of the range of labels: keeps the bars of two arms apart."""


def write_plots(results: StudyResults, folder: Path) -> None:
    """Write both files.

    Bars are bootstrap intervals of the mean over seeds and validation images; pairing makes differences surer.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="images labeled (mean over seeds)", ylabel="teacher mAP in percent")
        complete = {name: arm for name, arm in results.arms.items() if arm.curves}
        label_range = max((curve.labels[-1] for arm in complete.values() for curve in arm.curves.values()), default=1.0)
        for position, (name, arm) in enumerate(complete.items()):
            _plot_arm(axes, name, arm, x_offset=(position - len(complete) / 2) * _X_OFFSET_FRAC * label_range)
        if results.full_map:
            level = float(np.mean(list(results.full_map.values())))
            axes.axhline(level, color="#777777", linewidth=1, linestyle=":", label="all labels")
        axes.grid(axis="y", linewidth=0.5)
        if complete:
            figure.legend(loc="outside right upper", fontsize=9)
        formats: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 120}}
        for ending, options in formats.items():
            with files.atomic_write(folder / f"plot.{ending}") as temporary:
                figure.savefig(temporary, format=ending, **options)


def _plot_arm(axes: Axes, name: str, arm: ArmResult, *, x_offset: float) -> None:
    labels_SR = np.array([curve.labels for curve in arm.curves.values()])  # seeds x rounds
    values_SR = np.array([curve.values for curve in arm.curves.values()])
    mean_R = values_SR.mean(axis=0)
    bootstrap_values = [
        list(zip(*curve.resampled_values, strict=True)) for curve in arm.curves.values()
    ]  # by seed, then round
    intervals = [
        paired_bootstrap(
            column.tolist(),
            seed=0,
            resampled=[rounds[number] for rounds in bootstrap_values] if all(bootstrap_values) else (),
        )
        for number, column in enumerate(values_SR.T)
    ]
    error_2R = np.array(
        [[0.0, 0.0] if bar is None else [m - bar.low, bar.high - m] for m, bar in zip(mean_R, intervals, strict=True)]
    ).T
    axes.errorbar(
        labels_SR.mean(axis=0) + x_offset,
        mean_R,
        yerr=np.maximum(error_2R, 0),
        label=name,
        color=_BASELINE_COLORS.get(name),
        linestyle="--" if name in _BASELINE_COLORS else "-",
        marker="o",
        markersize=4,
        capsize=2,
        linewidth=1.4,
    )
