"""Measure the stage ``select`` on 1,000,000 images with embeddings, in a process of its own.

Run: ``make bench``; ``python -m infra.bench.selection --images 100000`` for fewer. The stage reads made-up tables of 20
detections an image and made-up embeddings, as the stages before it would have written them, and combines objectives of
every kind: a column, sums over boxes, distances to labeled images, and spread. Peak is the largest resident set.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from infra.bench.memory import StageCost, random_detections, run_stage
from tasks.data.detections import SHARD_PREFIX, ShardKind
from tasks.data.paths import Workspace
from tasks.data.schemas import (
    ALL_METRICS,
    ANNOTATED,
    CANDIDATE_SCORES,
    DETECTIONS_AT_SELECTION,
    METRICS,
    SCORES,
    UNCERTAINTY,
    UNLABELED,
    with_class_names,
)
from tasks.params.template import render_params
from tasks.storage import files

_NUM_IMAGES, _NUM_LABELED, _SHARD_SIZE = 1_000_000, 5_000, 4096
ID_STEP = 0x9E3779B1
"""Distance of two image ids, as numbers."""
CLASSES = ["a", "b", "c", "d", "e", "f"]
_MAX_SECONDS, _MAX_MIB = 300.0, 4096.0
_REPOSITORY = Path(__file__).parents[2]
_OVERRIDES = (
    "select.objectives={uncertainty: 1.0, rarity: 0.5, localization: 0.5, novelty: 0.5, diversity: 1.0}",
    "budget.unit=images",
    "budget.amount=1000",
)


def write_inputs(workspace: Workspace, num_images: int, num_labeled: int, calibration_ids: Sequence[str] = ()) -> None:
    """Write what the stages before ``select`` write: tables of the pool, of the labeled images, and detections.

    Calibration images are detected with the pool.
    """
    write_params(workspace, "composite")
    rng = np.random.default_rng(0)
    image_ids = np.sort(rng.permutation(num_images + num_labeled))
    text = np.char.mod("%016x", image_ids * ID_STEP)
    is_labeled = np.zeros(len(text), dtype=bool)
    is_labeled[rng.permutation(len(text))[:num_labeled]] = True
    write_shards(workspace, "pool", sorted([*text[~is_labeled].tolist(), *calibration_ids]))
    write_shards(workspace, "labeled", sorted(text[is_labeled].tolist()))
    _write_pool_tables(workspace, sorted(text[~is_labeled].tolist()), rng)
    _write_labels(workspace, sorted(text[is_labeled].tolist()), rng)


def write_params(workspace: Workspace, strategy: str) -> None:
    """Write the parameters of a selection of 1,000 images by a strategy."""
    template = (_REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    overrides = (*_OVERRIDES, f"select.strategy={strategy}")
    files.write_bytes(workspace.params, render_params(template, classes=CLASSES, overrides=overrides).encode())


def write_shards(workspace: Workspace, kind: ShardKind, image_ids: list[str]) -> None:
    """Write made-up detections in shards."""
    for number, start in enumerate(range(0, len(image_ids), _SHARD_SIZE)):
        shard = random_detections(image_ids[start : start + _SHARD_SIZE], len(CLASSES), seed=number)
        files.write_table(workspace.derived("infer") / f"{SHARD_PREFIX[kind]}-{number:06d}.parquet", shard)


def _write_pool_tables(workspace: Workspace, image_ids: list[str], rng: np.random.Generator) -> None:
    count = len(image_ids)
    ids, side_px = pa.array(image_ids), pa.array(np.full(count, 640, np.int32))
    unlabeled = pa.table([ids, ids, side_px, side_px], schema=UNLABELED)
    files.write_table(workspace.derived("assemble") / "unlabeled.parquet", unlabeled)
    files.write_json(workspace.derived("assemble") / "leased.json", [])
    scores = {"image_id": ids, "has_no_detections": pa.array(np.zeros(count, dtype=bool))}
    scores |= {
        name: pc.cast(pa.array(rng.random(count) * 10), SCORES.field(name).type, safe=False)
        for name in CANDIDATE_SCORES
        if name not in scores
    }
    for name, width in (("expected_boxes_per_class", len(CLASSES)), ("features", 12 + 2 * len(CLASSES))):
        offsets = np.arange(count + 1, dtype=np.int32) * width
        scores[name] = pa.ListArray.from_arrays(offsets, pa.array(rng.random(count * width, dtype=np.float32)))
    table = pa.table([scores[name] for name in SCORES.names], schema=SCORES)
    files.write_table(workspace.derived("score") / "scores.parquet", table)
    files.write_json(workspace.derived("score") / "box_errors.json", {"used": True, "reason": "made up"})
    weights = [pa.array(np.full(count, 1 / len(METRICS) if name in METRICS else 0.0)) for name in ALL_METRICS]
    uncertainty = pa.table([ids, *weights, pa.array(rng.random(count))], schema=UNCERTAINTY)
    files.write_table(workspace.derived("weigh") / "uncertainty.parquet", uncertainty)


def _write_labels(workspace: Workspace, image_ids: list[str], rng: np.random.Generator) -> None:
    corners_px = rng.uniform(0, 500, (len(image_ids), 2))
    boxes = np.hstack([corners_px, corners_px + rng.uniform(8, 120, corners_px.shape)])
    class_ids = rng.integers(len(CLASSES), size=len(image_ids))
    rows = [
        {
            "image_id": image, "uri": image, "width_px": 640, "height_px": 640, "batch": 0, "boxes_xyxy": box,
            "class_ids": [category],
        }
        for image, box, category in zip(image_ids, boxes.tolist(), class_ids.tolist(), strict=True)
    ]  # fmt: skip
    files.write_table(workspace.derived("assemble") / "labeled.parquet", pa.Table.from_pylist(rows, schema=ANNOTATED))
    answers = [
        {
            "image_id": row["image_id"], "status": "labeled",
            "boxes": [{"category": CLASSES[row["class_ids"][0]], "xyxy_px": row["boxes_xyxy"]}], "annotator": "a",
            "finished_at": "2026-01-01T00:00:00+00:00", "seconds_spent": None, "offered_batch": 0,
        }
        for row in rows
    ]  # fmt: skip
    batch = {"batch": 0, "provider": "made up", "collected_at": "2026-01-01T00:00:00+00:00", "images": answers}
    files.write_json(workspace.label_batch(0), batch)
    frozen = with_class_names(DETECTIONS_AT_SELECTION, CLASSES).empty_table()
    files.write_table(workspace.detections_at_selection_batch(0), frozen)


def measure(
    folder: Path, num_images: int, num_labeled: int, strategies: Sequence[str] = ("composite",)
) -> dict[str, StageCost]:
    """Write the tables to ``folder`` and run the stage on them, by each strategy in turn."""
    workspace = Workspace(folder)
    write_inputs(workspace, num_images, num_labeled)
    costs = {}
    for strategy in strategies:
        write_params(workspace, strategy)
        costs[strategy] = run_stage(workspace, "select")
    return costs


def main() -> None:
    """Measure and print.

    Raises:
        RuntimeError: the stage failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=_NUM_IMAGES, help="images of the pool")
    parser.add_argument("--labeled", type=int, default=_NUM_LABELED, help="labeled images")
    parser.add_argument("--strategies", nargs="+", default=["composite"], help="values of select.strategy")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as folder:
        costs = measure(Path(folder), options.images, options.labeled, options.strategies)
    title = f"select from {options.images:,} images, {options.labeled:,} labeled"
    table = Table("strategy", "wall seconds", "processor seconds", "peak MiB", title=title)
    for strategy, cost in costs.items():
        table.add_row(strategy, f"{cost.wall_s:.0f}", f"{cost.cpu_s:.0f}", f"{cost.peak_mib:,.0f}")
    table.add_row("bar", f"{_MAX_SECONDS:.0f}", "-", f"{_MAX_MIB:,.0f}")
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    main()
