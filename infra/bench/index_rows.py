"""Measure ``assemble`` and ``select`` on up to 10,000,000 rows, each in a process of its own; no picture is made.

Run: ``python -m infra.bench.index_rows --rows 1000000 10000000``. Tables are written as the stages before would have,
a block of rows at a time; 1,000 images are labeled, and the strategy is the default of params.yaml.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from infra.bench.memory import costs_table, measure_sizes
from infra.bench.selection import CLASSES, ID_STEP
from tasks.data.paths import Workspace
from tasks.data.schemas import (
    ANNOTATED,
    DETECTIONS_AT_SELECTION,
    POOL,
    SCORES,
    UNCERTAINTY,
    UNLABELED,
    with_class_names,
)
from tasks.params.template import render_params
from tasks.storage import files

_NUM_LABELED = 1_000
_BLOCK_ROWS = 250_000
_STAGES = ("assemble", "select")
_REPOSITORY = Path(__file__).parents[2]


def create_workspace(folder: Path, num_rows: int) -> Workspace:
    """Write what ``assemble`` and ``select`` read, without pictures and detections."""
    workspace = Workspace(folder)
    template = (_REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    files.write_bytes(workspace.params, render_params(template, classes=CLASSES, overrides=()).encode())
    _write_labels(workspace)
    files.write_table(workspace.calibration, ANNOTATED.empty_table())
    row = {
        "image_id": "f" * 16, "uri": "val", "width_px": 640, "height_px": 640, "batch": 0,
        "boxes_xyxy": [10.0, 20.0, 90.0, 70.0], "class_ids": [0],
    }  # fmt: skip
    val = pa.Table.from_pylist([row], schema=ANNOTATED)
    files.write_table(workspace.val, val)
    prepared = workspace.derived("prepare")
    files.write_table(prepared / "val.parquet", val.select(UNLABELED.names).cast(UNLABELED))
    files.write_json(prepared / "quarantine.json", [])
    _write_blocks(prepared / "pool.parquet", POOL, num_rows, first=0)
    _write_blocks(workspace.derived("score") / "scores.parquet", SCORES, num_rows, first=_NUM_LABELED)
    files.write_json(workspace.derived("score") / "box_errors.json", {"used": False, "reason": "made up"})
    _write_blocks(workspace.derived("weigh") / "uncertainty.parquet", UNCERTAINTY, num_rows, first=_NUM_LABELED)
    workspace.derived("infer").mkdir(parents=True)
    return workspace


def image_ids(first: int, last: int) -> list[str]:
    """Ids of the images with these numbers, ascending."""
    ids: list[str] = np.char.mod("%016x", np.arange(first, last) * ID_STEP).tolist()
    return ids


def _write_blocks(path: Path, schema: pa.Schema, num_rows: int, *, first: int) -> None:
    """Write random rows of a schema; texts are ids, lists have a number for each class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(first, num_rows, _BLOCK_ROWS):
            ids = pa.array(image_ids(start, min(start + _BLOCK_ROWS, num_rows)))
            columns = [_column(field, ids, rng) for field in schema]
            writer.write_table(pa.table(columns, schema=schema))


def _column(field: pa.Field, ids: pa.Array, rng: np.random.Generator) -> pa.Array:
    count = len(ids)
    makers: dict[bool, Callable[[], pa.Array]] = {
        pa.types.is_string(field.type): lambda: ids,
        pa.types.is_boolean(field.type): lambda: pa.array(np.zeros(count, dtype=bool)),
        pa.types.is_integer(field.type): lambda: pa.array(np.full(count, 640)).cast(field.type),
        pa.types.is_floating(field.type): lambda: pa.array(rng.random(count)).cast(field.type, safe=False),
        pa.types.is_list(field.type): lambda: pa.ListArray.from_arrays(
            np.arange(count + 1, dtype=np.int32) * len(CLASSES),
            pa.array(rng.random(count * len(CLASSES))).cast(field.type.value_type, safe=False),
        ),
    }
    return makers[True]()


def _write_labels(workspace: Workspace) -> None:
    answers = [
        {
            "image_id": image, "status": "labeled", "annotator": "a", "seconds_spent": None, "offered_batch": 0,
            "boxes": [{"category": CLASSES[number % len(CLASSES)], "xyxy_px": [10.0, 20.0, 90.0, 70.0]}],
            "finished_at": "2026-01-01T00:00:00+00:00",
        }
        for number, image in enumerate(image_ids(0, _NUM_LABELED))
    ]  # fmt: skip
    batch = {"batch": 0, "provider": "made up", "collected_at": "2026-01-01T00:00:00+00:00", "images": answers}
    files.write_json(workspace.label_batch(0), batch)
    seen = with_class_names(DETECTIONS_AT_SELECTION, CLASSES).empty_table()
    files.write_table(workspace.detections_at_selection_batch(0), seen)


def main() -> None:
    """Measure and print.

    Raises:
        RuntimeError: a stage failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="rows of the index")
    rows: list[int] = parser.parse_args().rows
    costs = measure_sizes(rows, create_workspace, _STAGES)
    Console(soft_wrap=True).print(costs_table(costs, "rows"))


if __name__ == "__main__":
    main()
