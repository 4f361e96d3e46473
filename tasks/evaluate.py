"""Measure teacher and student on the fixed validation set.

Reads  data/images, derived/assemble/val.parquet, derived/train/teacher.pth, derived/train/student.pth
Writes derived/evaluate/predictions.parquet, derived/evaluate/metrics.json
Params classes, model, evaluate
"""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.data import schemas
from tasks.data.paths import Workspace
from tasks.evaluation.coco_map import coco_map
from tasks.model.detector import detect, image_reader, load_detector, prefetch
from tasks.params import StageParams, load_stage_params
from tasks.runtime.stage_main import num_micro_batches, stage_main
from tasks.storage import files

log = logging.getLogger(__name__)
MODELS = ("teacher", "student")


def evaluate(params: StageParams, *, root: Path, val: Path, weights: dict[str, Path], out: Path) -> None:
    """Write every validation prediction and the COCO metrics of each model.

    Args:
        params: sections classes, model, evaluate.
        root: folder that image uris are relative to.
        val: contracts.ANNOTATED.
        weights: state file by model name, teacher and student.
        out: output folder.
    """
    truth = files.read_table(val, schemas.ANNOTATED)
    rows: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    for name, path in weights.items():
        predictions = _predict(params, name, path, truth, root)
        metrics[name] = coco_map(truth, pa.Table.from_pylist(predictions, schemas.PREDICTIONS), params.classes)
        log.info("evaluate %s: mAP %.1f, AP50 %.1f", name, metrics[name]["mAP"], metrics[name]["AP50"])
        rows += predictions
    files.write_table(out / "predictions.parquet", pa.Table.from_pylist(rows, schemas.PREDICTIONS))
    files.write_json(out / "metrics.json", {**metrics, "val_images": truth.num_rows})


def _predict(params: StageParams, name: str, weights: Path, truth: pa.Table, root: Path) -> list[dict[str, Any]]:
    detector = load_detector(params.model, len(params.classes), weights)
    images = truth.select(["image_id", "uri"]).to_pylist()
    size = max(params.evaluate.batch_size // num_micro_batches(), 1)
    batches = [images[first : first + size] for first in range(0, len(images), size)]
    read_image = image_reader(root, images, prefetch_remote=True)
    rows = []
    for batch, pixels in prefetch(batches, lambda image: read_image(image["uri"])):
        for image, found in zip(batch, detect(detector, pixels, params.model), strict=True):
            kept = found.filter_by_score(params.evaluate.score_threshold)
            rows.append(
                {
                    "model": name,
                    "image_id": image["image_id"],
                    "boxes_xyxy": kept.boxes_xyxy.ravel(),
                    "scores": kept.scores,
                    "class_ids": kept.class_ids,
                }
            )
    return rows


def _body(workspace: Workspace) -> None:
    evaluate(
        load_stage_params(workspace.params, "classes", "model", "evaluate"),
        root=workspace.root,
        val=workspace.derived("assemble") / "val.parquet",
        weights={name: workspace.derived("train") / f"{name}.pth" for name in MODELS},
        out=workspace.derived("evaluate"),
    )


def main() -> None:
    """``python -m tasks.evaluate``."""
    stage_main("evaluate", _body)


if __name__ == "__main__":
    main()
