"""Measure teacher and student on the fixed validation set.

Reads  data/images, data/val_names.parquet, derived/assemble/val.parquet,
       derived/train/teacher.pth, derived/train/student.pth
Writes derived/evaluate/predictions.parquet, derived/evaluate/metrics.json
Params classes, model, evaluate, train.mixed_precision
"""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from detectron_ext.augmentation import Pixels
from detectron_ext.inference import Detections
from tasks.data import schemas
from tasks.data.paths import Workspace
from tasks.evaluation.coco_map import coco_map
from tasks.evaluation.protocols import protocol_metrics
from tasks.evaluation.slices import ImageTraits, mean_luma
from tasks.model.detector import ImageReader, detect_all, load_detector
from tasks.params import StageParams, load_stage_params
from tasks.runtime.allocator import keep_freed_memory
from tasks.runtime.stage_main import num_micro_batches, stage_main
from tasks.storage import files

log = logging.getLogger(__name__)
MODELS = ("teacher", "student")


def evaluate(
    params: StageParams, *, root: Path, val: Path, val_names: Path, weights: dict[str, Path], out: Path
) -> None:
    """Write every validation prediction, and of each model the COCO metrics and those of further protocols.

    Args:
        params: sections classes, model, evaluate and train.
        root: folder that image uris are relative to.
        val: schemas.ANNOTATED.
        val_names: schemas.FILE_NAMES of these images; only the protocol ``slices`` reads it.
        weights: state file by model name, teacher and student.
        out: output folder.
    """
    truth = files.read_table(val, schemas.ANNOTATED)
    rows: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    protocols: dict[str, Any] = {}
    predictions_of, traits = _predict(params, weights, truth, root, val_names)
    for name, predictions in predictions_of.items():
        found = pa.Table.from_pylist(predictions, schemas.PREDICTIONS)
        metrics[name] = coco_map(truth, found, params.classes)
        protocols[name] = protocol_metrics(truth, found, params.classes, params.evaluate, traits)
        log.info("evaluate %s: mAP %.1f, AP50 %.1f", name, metrics[name]["mAP"], metrics[name]["AP50"])
        rows += predictions
    schema = schemas.with_class_names(schemas.PREDICTIONS, params.classes)
    files.write_table(out / "predictions.parquet", pa.Table.from_pylist(rows, schema))
    files.write_json(out / "metrics.json", {**metrics, "protocols": protocols, "val_images": truth.num_rows})


def _predict(
    params: StageParams, weights: dict[str, Path], truth: pa.Table, root: Path, val_names: Path
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, ImageTraits]]:
    """Rows of PREDICTIONS by model, in the order of ``truth``, and traits of the images where slices need them.

    Every image is decoded once for all.
    """
    images = truth.select(["image_id", "uri"]).to_pylist()
    read_image = ImageReader(root, images, prefetch_remote=True)
    traits: dict[str, ImageTraits] = {}
    with_slices = "slices" in params.evaluate.protocols
    names = _file_names(val_names) if with_slices else {}

    def read(image: dict[str, str]) -> Pixels:
        pixels = read_image(image["uri"])
        if with_slices:
            image_id, hour = image["image_id"], read_image.captured_hour(image["uri"])
            traits[image_id] = ImageTraits(mean_luma(pixels), hour, names.get(image_id, ""))
        return pixels

    results = detect_all(
        [load_detector(params.model, len(params.classes), path) for path in weights.values()],
        images,
        read,
        params.model,
        batch_size=max(params.evaluate.batch_size // num_micro_batches(), 1),
        mixed_precision=params.train.mixed_precision,
    )
    found_of = {image["image_id"]: dict(zip(weights, found, strict=True)) for image, found in results}
    rows_of = {
        name: [_row(params, name, image["image_id"], found_of[image["image_id"]][name]) for image in images]
        for name in weights
    }
    return rows_of, traits


def _file_names(path: Path) -> dict[str, str]:
    """The users' own names by image id."""
    rows = files.read_table(path, schemas.FILE_NAMES).to_pylist()
    return {row["image_id"]: row["file_name"] for row in rows}


def _row(params: StageParams, name: str, image_id: str, found: Detections) -> dict[str, Any]:
    kept = found.filter_by_score(params.evaluate.score_threshold)
    return {
        "model": name,
        "image_id": image_id,
        "boxes_xyxy": kept.boxes_xyxy.ravel(),
        "scores": kept.scores,
        "class_ids": kept.class_ids,
    }


def _body(workspace: Workspace) -> None:
    keep_freed_memory()
    evaluate(
        load_stage_params(workspace.params, "classes", "model", "evaluate", "train"),
        root=workspace.root,
        val=workspace.derived("assemble") / "val.parquet",
        val_names=workspace.val_names,
        weights={name: workspace.derived("train") / f"{name}.pth" for name in MODELS},
        out=workspace.derived("evaluate"),
    )


def main() -> None:
    """``python -m tasks evaluate``."""
    stage_main("evaluate", _body)


if __name__ == "__main__":
    main()
