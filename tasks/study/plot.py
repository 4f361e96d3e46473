"""``plot.svg`` and ``plot.png``: mAP against minutes, boxes and images, one line per arm, with intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.storage import files
from tasks.study.plan import EQUAL, RANDOM
from tasks.study.results import COST_COLUMNS, ArmResult, StudyResults
from tasks.study.statistics import Curve, paired_bootstrap

_STYLE: dict[Any, Any] = {"svg.hashsalt": "gleaner", "svg.fonttype": "none", "font.size": 11}
_BASELINE_COLORS = {RANDOM: "#777777", EQUAL: "#000000"}
_X_OFFSET_FRAC = 0.006
"""Of the range of costs: keeps the bars of two arms apart."""
_LABELS = {"minutes": "minutes of annotation", "boxes": "boxes", "images": "images"}


def write_plots(results: StudyResults, folder: Path) -> None:
    """Write both files.

    Bars are bootstrap intervals of the mean over seeds and validation images; pairing makes differences surer.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(15, 5), layout="constrained")
        complete = {name: arm for name, arm in results.arms.items() if arm.curves}
        panels = figure.subplots(1, len(COST_COLUMNS), sharey=True)
        for axes, cost in zip(panels, COST_COLUMNS, strict=True):
            axes.set(xlabel=f"{_LABELS[cost]} (mean over seeds)")
            _plot_panel(axes, results, complete, cost)
        panels[0].set(ylabel="mAP in percent")
        if complete:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        formats: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 120}}
        for ending, options in formats.items():
            with files.atomic_write(folder / f"plot.{ending}") as temporary:
                figure.savefig(temporary, format=ending, **options)


def _plot_panel(axes: Axes, results: StudyResults, complete: dict[str, ArmResult], cost: str) -> None:
    """Draw all arms over one kind of cost."""
    curves = [curve for arm in complete.values() for curve in arm.curves_by_cost[cost].values()]
    cost_range = max((curve.cost[-1] for curve in curves), default=1.0)
    for position, (name, arm) in enumerate(complete.items()):
        x_offset = (position - len(complete) / 2) * _X_OFFSET_FRAC * cost_range
        _plot_arm(axes, name, list(arm.curves_by_cost[cost].values()), x_offset=x_offset)
    if results.full_map:
        level = float(np.mean(list(results.full_map.values())))
        axes.axhline(level, color="#777777", linewidth=1, linestyle=":", label="all labels")
    axes.grid(axis="y", linewidth=0.5)


def _plot_arm(axes: Axes, name: str, curves: Sequence[Curve], *, x_offset: float) -> None:
    cost_SR = np.array([curve.cost for curve in curves])  # seeds x rounds
    values_SR = np.array([curve.values for curve in curves])
    mean_R = values_SR.mean(axis=0)
    bootstrap_values = [list(zip(*curve.resampled_values, strict=True)) for curve in curves]  # by seed, then round
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
        cost_SR.mean(axis=0) + x_offset,
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
