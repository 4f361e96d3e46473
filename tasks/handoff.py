"""Write the manifest of the selected images for the annotators, with boxes pre-drawn by the teacher.

Reads  derived/assemble/unlabeled.parquet, derived/infer, derived/score, derived/select
Writes derived/handoff
Params classes, preannotation
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.detections import read_shards
from tasks.data.paths import Workspace
from tasks.data.schemas import (
    DETECTIONS,
    DETECTIONS_AT_SELECTION,
    METRICS,
    SCORES,
    SELECTION,
    UNLABELED,
    AnnotationTask,
    Prediction,
    with_class_names,
)
from tasks.params import load_stage_params
from tasks.params.stages import PreannotationParams
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

_DECIMALS_PX = 2
_log = logging.getLogger(__name__)

_Row = dict[str, Any]


def handoff(
    params: PreannotationParams,
    *,
    classes: Sequence[str],
    unlabeled: Path,
    detections: Path,
    scores: Path,
    selection: Path,
    out: Path,
) -> None:
    """Write ``manifest.jsonl`` (AnnotationTask) and ``detections.parquet`` (DETECTIONS_AT_SELECTION).

    Args:
        params: score a detection needs to be drawn.
        classes: class names in the order of their indices.
        unlabeled: images without labels, schemas.UNLABELED.
        detections: folder of shards, schemas.DETECTIONS; read one after the other.
        scores: metrics of the pool, schemas.SCORES.
        selection: selected images, schemas.SELECTION.
        out: folder of the results.

    Raises:
        UserError: a picked image is not among the unlabeled ones, was not seen by the teacher, or not scored.
    """
    selected = sorted(files.read_table(selection, SELECTION).to_pylist(), key=lambda row: row["rank"])
    images = {row["image_id"]: row for row in files.read_table(unlabeled, UNLABELED).to_pylist()}
    detection_table = _load_detections([row["image_id"] for row in selected], detections)
    detected = {row["image_id"]: row for row in detection_table.to_pylist()}
    score_table = files.read_table(scores, SCORES, columns=["image_id", *METRICS])
    scores_by_id = {row["image_id"]: row for row in score_table.to_pylist()}
    for known, where, problem_text in (
        (images, selection, "is not among the unlabeled images"),
        (detected, detections, "has no detections"),
        (scores_by_id, scores, "has no scores"),
    ):
        _check_complete(selected, known, where, problem_text)
    tasks = [
        _annotation_task(row, images[row["image_id"]], detected[row["image_id"]], classes, params.score_threshold)
        for row in selected
    ]
    # ASCII, so that no reader takes a line separator inside a class name for the end of the line.
    lines = [json.dumps(task.model_dump(mode="json")) + "\n" for task in tasks]
    files.write_bytes(out / "manifest.jsonl", "".join(lines).encode())
    files.write_table(out / "detections.parquet", _frozen(detection_table, scores_by_id, selected, classes))
    _log.info("%d images, %d boxes pre-drawn", len(tasks), sum(len(task.predictions) for task in tasks))


def _check_complete(selected: Sequence[_Row], known: Mapping[str, _Row], where: Path, problem_text: str) -> None:
    for row in selected:
        if row["image_id"] not in known:
            problem = f"picked image {row['image_id']} {problem_text}, expected every picked image to be complete"
            raise UserError(where, problem, "Run: dvc repro handoff")


def _load_detections(image_ids: Sequence[str], shards: Path) -> pa.Table:
    """Return the rows of the selected images from all shards, sorted by image id."""
    wanted_ids = pa.array(image_ids, type=pa.string())
    parts = [table.filter(pc.is_in(table["image_id"], value_set=wanted_ids)) for table in read_shards(shards)]
    found: pa.Table = pa.concat_tables([DETECTIONS.empty_table(), *parts]).sort_by("image_id")
    return found


def _frozen(
    found: pa.Table, scores_by_id: Mapping[str, _Row], selected: Sequence[_Row], classes: Sequence[str]
) -> pa.Table:
    """Add the normalized metrics, the draw and the class names of this round, which later rounds cannot compute again.

    The pool that the metrics were normalized over changes, and so may ``classes``.
    """
    rows = [scores_by_id[image_id] for image_id in found["image_id"].to_pylist()]
    for name in METRICS:
        found = found.append_column(name, pa.array([row[name] for row in rows], pa.float64()))
    selected_by_id = {row["image_id"]: row for row in selected}
    for name, kind in (("is_random_pick", pa.bool_()), ("num_candidates", pa.int64())):
        values = [selected_by_id[image_id][name] for image_id in found["image_id"].to_pylist()]
        found = found.append_column(name, pa.array(values, kind))
    return found.cast(with_class_names(DETECTIONS_AT_SELECTION, classes))


def _annotation_task(
    selected: _Row, image: _Row, detected: _Row, classes: Sequence[str], score_threshold: float
) -> AnnotationTask:
    boxes = [detected["boxes_xyxy"][i : i + 4] for i in range(0, len(detected["boxes_xyxy"]), 4)]
    predictions = [
        Prediction(category=classes[label], xyxy_px=_clip_box(box, image), score=min(max(score, 0.0), 1.0))
        for box, label, score in zip(boxes, detected["class_ids"], detected["scores"], strict=True)
        if score >= score_threshold
    ]
    non_empty = [p for p in predictions if p.xyxy_px[0] < p.xyxy_px[2] and p.xyxy_px[1] < p.xyxy_px[3]]
    return AnnotationTask(
        image_id=selected["image_id"],
        uri=image["uri"],
        width_px=image["width_px"],
        height_px=image["height_px"],
        rank=selected["rank"],
        reason=selected["reason"],
        uncertainty=selected["uncertainty"],
        predictions=tuple(sorted(non_empty, key=lambda p: (-p.score, p.category, p.xyxy_px))),
        model_digest=detected["model_digest"],
    )


def _clip_box(box: Sequence[float], image: _Row) -> tuple[float, float, float, float]:
    """Round the corners and clip them to the image: label tools refuse a box that exceeds it by a rounding error."""
    x1, y1, x2, y2 = (round(corner, _DECIMALS_PX) for corner in box)
    width, height = float(image["width_px"]), float(image["height_px"])
    return max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)


def _body(workspace: Workspace) -> None:
    sections = load_stage_params(workspace.params, "classes", "preannotation")
    handoff(
        sections.preannotation,
        classes=sections.classes,
        unlabeled=workspace.derived("assemble") / "unlabeled.parquet",
        detections=workspace.derived("infer"),
        scores=workspace.derived("score") / "scores.parquet",
        selection=workspace.derived("select") / "selection.parquet",
        out=workspace.derived("handoff"),
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("handoff", _body)


if __name__ == "__main__":
    main()
