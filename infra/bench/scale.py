"""Measure score, weigh, select and handoff on 100,000 and 1,000,000 images of 20 boxes, each in a process of its own.

Run: ``make bench-scale``; ``python -m infra.bench.scale --sizes 10000 100000`` for fewer. The tables are made up as the
stages before would have written them; the strategy is the default of params.yaml. Two bars: processor seconds and peak
of the largest size, and that the last step in size costs no more than its factor and a twentieth.
"""

import argparse
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from infra.bench.memory import costs_table, measure_sizes
from infra.bench.selection import CLASSES, ID_STEP, write_inputs
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, DETECTIONS_AT_SELECTION, with_class_names
from tasks.params.template import render_params
from tasks.storage import files

_SIZES = (100_000, 1_000_000)
_NUM_LABELED, _NUM_CALIBRATION = 1_000, 200
_STAGES = ("score", "weigh", "select", "handoff")
_MAX_CPU_S, _MAX_MIB, _MAX_GROWTH_RATIO = 60.0, 2048.0, 1.05
_REPOSITORY = Path(__file__).parents[2]


def create_workspace(folder: Path, num_images: int) -> Workspace:
    """Write what the stages up to ``infer`` write, with calibration images among the detected ones."""
    workspace = Workspace(folder)
    spacing = num_images // _NUM_CALIBRATION
    calibration_ids = [f"{number * spacing * ID_STEP + 1:016x}" for number in range(_NUM_CALIBRATION)]
    write_inputs(workspace, num_images, _NUM_LABELED, calibration_ids)
    template = (_REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    files.write_bytes(workspace.params, render_params(template, classes=CLASSES, overrides=()).encode())
    rows = [
        {
            "image_id": image, "uri": image, "width_px": 640, "height_px": 640, "batch": 0,
            "boxes_xyxy": [10.0, 20.0, 90.0, 70.0], "class_ids": [number % len(CLASSES)],
        }
        for number, image in enumerate(calibration_ids)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=ANNOTATED)
    files.write_table(workspace.derived("assemble") / "calibration.parquet", table)
    seen = with_class_names(DETECTIONS_AT_SELECTION, CLASSES).empty_table()  # of the seed batch: no teacher saw it
    files.write_table(workspace.detections_at_selection / "batch-0000.parquet", seen)
    return workspace


def main() -> int:
    """Measure and print; 1 where a bar is missed.

    Raises:
        RuntimeError: a stage failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(_SIZES), help="images of the pool")
    sizes: list[int] = parser.parse_args().sizes
    costs = measure_sizes(sizes, create_workspace, _STAGES)
    table = costs_table(costs, "images")
    total_s = {size: sum(cost.cpu_s for cost in costs[size].values()) for size in sizes}
    peak_mib = {size: max(cost.peak_mib for cost in costs[size].values()) for size in sizes}
    table.add_row("together", *(f"{total_s[size]:.1f} ({peak_mib[size]:,.0f})" for size in sizes))
    Console(soft_wrap=True).print(table)
    missed = []
    if total_s[sizes[-1]] > _MAX_CPU_S or peak_mib[sizes[-1]] > _MAX_MIB:
        missed.append(f"the bar is {_MAX_CPU_S:.0f} s and {_MAX_MIB:,.0f} MiB")
    if len(sizes) > 1:
        growth, factor = total_s[sizes[-1]] / total_s[sizes[-2]], sizes[-1] / sizes[-2]
        print(f"{factor:g} times the images cost {growth:.2f} times the time")
        if growth > factor * _MAX_GROWTH_RATIO:
            missed.append(f"the bar for growth is {factor * _MAX_GROWTH_RATIO:.2f}")
    print("; ".join(missed) or "all bars are met")
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
