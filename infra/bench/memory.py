"""Measure the peak memory of every stage at 1,000, 10,000 and 100,000 images, each stage in a process of its own.

Run: ``python -m infra.bench.memory``; not part of ``make bench``. Every stage runs once on few, drawn images, with the
parameters of the CPU profile and few training steps: what the stages that open images need depends on batch and image
size. How it grows with the pool is measured with ``--opened SIZES``, where every image is opened and the detector sees
it at 32 pixels. The other stages run on tables of each size, with made-up detections of 20 boxes an image. The figure
is the largest resident set of one process; loader processes come on top.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from infra.bench.init import UnopenedImages, draw_images, write_document
from tasks.data.dataset_source import DatasetSource
from tasks.data.initial_split import CampaignPlan, create_campaign_data
from tasks.data.paths import STAGES, Workspace
from tasks.data.schemas import ANNOTATED, DETECTIONS, INDEX, POOL, UNLABELED
from tasks.params import load_params
from tasks.params.profiles import CPU_OVERRIDES
from tasks.params.template import render_params
from tasks.storage import files

_SIZES = (1_000, 10_000, 100_000)
_NUM_DRAWN = 200
_BOXES_PER_IMAGE, _LABELED_BOXES_PER_IMAGE = 20, 3
_EMBEDDING_SIZE = 256
_REGION_CLASSES, _REGION_SIZE = 5, 64
_SHARD_SIZE = 4096
_SMALL_INPUT = ("model.short_side_px=32", "model.long_side_px=48")
"""Of a detector that runs over many images in minutes."""
_WITH_IMAGES = ("prepare", "train", "evaluate", "infer")
_REPOSITORY = Path(__file__).parents[2]
_OVERRIDES = (
    *CPU_OVERRIDES,
    "train.iterations=12",
    "train.burn_in_iterations=6",
    "report.thumbnails=0",
    "budget.amount=100",
)


_LAUNCHER = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print()
print(usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
sys.exit(done.returncode)
"""
"""A small process between this one and a stage: Linux counts what the parent of a new process held as the child's."""


@dataclass(frozen=True)
class StageCost:
    """Of one stage's process."""

    peak_mib: float
    cpu_s: float
    wall_s: float


def create_campaign(folder: Path, num_images: int, *, with_images: bool, overrides: Sequence[str] = ()) -> Workspace:
    """Import a made-up data set; the images are drawn, or never opened."""
    source_folder, workspace = folder / "source", Workspace(folder / "campaign")
    source_folder.mkdir(parents=True)
    write_document(source_folder / "labels.json", num_images, _LABELED_BOXES_PER_IMAGE * num_images)
    if with_images:
        draw_images(source_folder / "images", num_images)
    images = source_folder / "images" if with_images else UnopenedImages(num_images)
    source = DatasetSource("coco", source_folder / "labels.json", images)  # type: ignore[arg-type]
    plan = CampaignPlan(
        seed=1,
        seed_images=num_images // 10,
        calibration_images=50,
        val_frac=0.05,
        oracle=False,
        imported_at="2026-01-01T00:00:00+00:00",
        max_pixels=10**8,
    )
    data = create_campaign_data(source, plan, workspace)
    template = (_REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    files.write_bytes(
        workspace.params, render_params(template, classes=data.classes, overrides=(*_OVERRIDES, *overrides)).encode()
    )
    return workspace


def replace_prepare(workspace: Workspace) -> None:
    """Write what ``prepare`` would, for images that are not there."""
    index = files.read_table(workspace.index, INDEX)
    size = pa.array(np.full(index.num_rows, 640), pa.int32())
    pool = index.append_column("width_px", size).append_column("height_px", size).select(POOL.names).cast(POOL)
    files.write_table(workspace.derived("prepare") / "pool.parquet", pool)
    val = files.read_table(workspace.val, ANNOTATED).select(UNLABELED.names).cast(UNLABELED)
    files.write_table(workspace.derived("prepare") / "val.parquet", val)
    files.write_json(workspace.derived("prepare") / "quarantine.json", [])


def replace_infer(workspace: Workspace) -> None:
    """Write made-up detections of the unlabeled and calibration images."""
    assembled = workspace.derived("assemble")
    shutil.rmtree(workspace.derived("infer"), ignore_errors=True)
    image_ids = sorted(
        files.read_table(assembled / "unlabeled.parquet", UNLABELED)["image_id"].to_pylist()
        + files.read_table(assembled / "calibration.parquet", ANNOTATED)["image_id"].to_pylist()
    )
    num_classes = len(load_params(workspace.params).classes)
    for number, start in enumerate(range(0, len(image_ids), _SHARD_SIZE)):
        shard = random_detections(image_ids[start : start + _SHARD_SIZE], num_classes, seed=number)
        files.write_table(workspace.derived("infer") / f"shard-{number:05d}.parquet", shard)


def random_detections(image_ids: list[str], num_classes: int, seed: int) -> pa.Table:
    """Make up 20 detections and the embeddings of each image, schemas.DETECTIONS."""
    rng = np.random.default_rng(seed)
    num_images = len(image_ids)
    num_boxes = num_images * _BOXES_PER_IMAGE
    corner_px = rng.uniform(0, 500, (num_boxes, 2))
    boxes = np.hstack([corner_px, corner_px + rng.uniform(8, 120, (num_boxes, 2))]).astype(np.float32)
    logits = rng.normal(0, 2, (num_boxes, num_classes + 1))
    class_probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    foreground = class_probs[:, :-1]

    def lists(values: np.ndarray[Any, Any], per_image: int) -> pa.Array:
        offsets = np.arange(num_images + 1, dtype=np.int32) * per_image
        return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))

    columns = {
        "image_id": pa.array(image_ids),
        "boxes_xyxy": lists(boxes, 4 * _BOXES_PER_IMAGE),
        "scores": lists(foreground.max(axis=1).astype(np.float32), _BOXES_PER_IMAGE),
        "class_ids": lists(foreground.argmax(axis=1).astype(np.int16), _BOXES_PER_IMAGE),
        "class_probs": lists(class_probs.astype(np.float16), (num_classes + 1) * _BOXES_PER_IMAGE),
        "embedding": lists(rng.normal(size=(num_images, _EMBEDDING_SIZE)).astype(np.float16), _EMBEDDING_SIZE),
        "residual_mass": pa.array(rng.uniform(0, 1, num_images).astype(np.float32)),
        "stability": lists(rng.uniform(0.5, 1, num_boxes).astype(np.float32), _BOXES_PER_IMAGE),
        "region_class_ids": lists(np.tile(np.arange(_REGION_CLASSES, dtype=np.int16), num_images), _REGION_CLASSES),
        "region_features": lists(
            rng.normal(size=(num_images, _REGION_CLASSES * _REGION_SIZE)).astype(np.float16),
            _REGION_CLASSES * _REGION_SIZE,
        ),
        "box_disagreement": pa.array(rng.uniform(0, 5, num_images).astype(np.float32)),
        "class_disagreement": pa.array(rng.uniform(0, 5, num_images).astype(np.float32)),
        "objectness_entropy_raw": pa.nulls(num_images, pa.float32()),
        "objectness_entropy_map": pa.nulls(num_images, pa.list_(pa.uint8())),
        "model_digest": pa.array(["0" * 64] * num_images),
    }
    return pa.table([columns[name] for name in DETECTIONS.names], schema=DETECTIONS)


def measure_sizes(
    sizes: Sequence[int], create_workspace: Callable[[Path, int], Workspace], stages: Sequence[str]
) -> dict[int, dict[str, StageCost]]:
    """Run the stages one after the other on a workspace of each size.

    Raises:
        RuntimeError: a stage failed.
    """
    costs = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as folder:
            workspace = create_workspace(Path(folder), size)
            costs[size] = {stage: run_stage(workspace, stage) for stage in stages}
    return costs


def costs_table(costs: Mapping[int, Mapping[str, StageCost]], unit: str) -> Table:
    """Return a row for each stage and a column for each size."""
    table = Table("stage", *(f"{size:,} {unit}" for size in costs), title="Processor seconds (peak MiB)")
    for stage in next(iter(costs.values())):
        found = [by_stage[stage] for by_stage in costs.values()]
        table.add_row(stage, *(f"{cost.cpu_s:.1f} ({cost.peak_mib:,.0f})" for cost in found))
    return table


def run_stage(workspace: Workspace, stage: str) -> StageCost:
    """Run a stage as DVC does.

    Raises:
        RuntimeError: it failed; carries the end of its output.
    """
    command = [sys.executable, "-S", "-c", _LAUNCHER, sys.executable, "-W", "ignore", "-m", "tasks", stage]
    environment = {**os.environ, "PYTHONPATH": str(_REPOSITORY)}
    started_s = time.perf_counter()
    done = subprocess.run(command, cwd=workspace.root, env=environment, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started_s
    if done.returncode:
        raise RuntimeError(f"{stage} ended with code {done.returncode}: {done.stderr[-2000:]}")
    peak_kib, cpu_s = map(float, done.stdout.splitlines()[-1].split())
    return StageCost(peak_kib / 1024, cpu_s, wall_s)


def measure(
    folder: Path, num_images: int, trained: Workspace | None, overrides: Sequence[str] = ()
) -> tuple[Workspace, dict[str, StageCost]]:
    """Run the stages of a campaign of this size.

    Args:
        folder: for the campaign.
        num_images: of the pool and the validation set together.
        trained: a campaign whose training and evaluation stand in for this one's; None: images are drawn, and every
            stage is run.
        overrides: ``section.key=value``.
    """
    workspace = create_campaign(folder, num_images, with_images=trained is None, overrides=overrides)
    if trained is not None:
        replace_prepare(workspace)
        for stage in ("train", "evaluate"):
            shutil.copytree(trained.derived(stage), workspace.derived(stage))
    costs = {}
    for stage in STAGES:
        if trained is None or stage not in _WITH_IMAGES:
            costs[stage] = run_stage(workspace, stage)
            cost = costs[stage]
            print(
                f"{num_images:,} images: {stage} {cost.peak_mib:,.0f} MiB, {cost.cpu_s:.1f} s",
                file=sys.stderr,
                flush=True,
            )
        if stage == "infer":
            replace_infer(workspace)
    return workspace, costs


def main() -> None:
    """Measure and print a table; ``--json FILE`` also writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(_SIZES), help="images of the made-up tables")
    parser.add_argument("--drawn", type=int, default=_NUM_DRAWN, help="images that are drawn and opened")
    parser.add_argument("--opened", type=int, nargs="*", default=[], help="images that are drawn and opened, but small")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    costs: dict[str, dict[str, StageCost]] = {}
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as scratch:
        trained, costs[f"{options.drawn:,} drawn"] = measure(Path(scratch) / "drawn", options.drawn, None)
        for size in options.opened:
            _, costs[f"{size:,} opened"] = measure(Path(scratch) / f"opened-{size}", size, None, _SMALL_INPUT)
        for size in options.sizes:
            _, costs[f"{size:,}"] = measure(Path(scratch) / str(size), size, trained)
    table = Table("stage", *costs, title="Peak memory in MiB (processor seconds), by number of images")
    for stage in STAGES:
        cells = [stages.get(stage) for stages in costs.values()]
        table.add_row(stage, *(f"{cost.peak_mib:,.0f} ({cost.cpu_s:.1f})" if cost else "-" for cost in cells))
    Console().print(table)
    if options.json:
        figures = {
            size: {stage: [cost.peak_mib, cost.cpu_s] for stage, cost in stages.items()}
            for size, stages in costs.items()
        }
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
