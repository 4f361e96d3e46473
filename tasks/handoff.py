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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import Floats, pairwise_iou
from tasks.data.detections import shard_paths
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
    RunnerUp,
    with_class_names,
)
from tasks.params import load_stage_params
from tasks.params.stages import PreannotationParams
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

Ints = NDArray[np.int64]
_DECIMALS_PX = 2
_DECIMALS_DOUBT = 4
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
    open_ranking: Path,
    out: Path,
) -> None:
    """Write ``manifest.jsonl`` (AnnotationTask) and ``detections.parquet`` (DETECTIONS_AT_SELECTION).

    ``open_tasks.jsonl`` holds the same as the manifest for the images that are with the annotators already.

    Args:
        params: score a detection needs to be drawn, and overlap up to which two boxes are two objects.
        classes: class names in the order of their indices.
        unlabeled: images without labels, schemas.UNLABELED.
        detections: folder of shards, schemas.DETECTIONS; read one after the other.
        scores: metrics of the pool, schemas.SCORES.
        selection: selected images, schemas.SELECTION.
        open_ranking: images that are with the annotators, in their new order, schemas.SELECTION.
        out: folder of the results.

    Raises:
        UserError: a picked image is not among the unlabeled ones, was not seen by the teacher, or not scored.
    """
    selected = sorted(files.read_table(selection, SELECTION).to_pylist(), key=lambda row: row["rank"])
    opened = sorted(files.read_table(open_ranking, SELECTION).to_pylist(), key=lambda row: row["rank"])
    shown_ids = pa.array([row["image_id"] for row in (*selected, *opened)], pa.string())
    images = _rows_by_id(files.read_table(unlabeled, UNLABELED), shown_ids)
    all_detections = _load_detections(shown_ids, detections)
    detected = {row["image_id"]: row for row in all_detections.to_pylist()}
    detection_table = _select_rows(all_detections, pa.array([row["image_id"] for row in selected], pa.string()))
    scores_by_id = _rows_by_id(files.read_table(scores, SCORES, columns=["image_id", *METRICS]), shown_ids)
    for known, where, problem_text in (
        (images, selection, "is not among the unlabeled images"),
        (detected, detections, "has no detections"),
        (scores_by_id, scores, "has no scores"),
    ):
        _check_complete(selected, known, where, problem_text)
    _check_complete(opened, detected, detections, "has no detections")
    tasks, open_tasks = (
        [_annotation_task(row, images[row["image_id"]], detected[row["image_id"]], classes, params) for row in rows]
        for rows in (selected, opened)
    )
    for name, found in (("manifest.jsonl", tasks), ("open_tasks.jsonl", open_tasks)):
        files.write_bytes(out / name, task_lines(found))
    files.write_table(out / "detections.parquet", _frozen(detection_table, scores_by_id, selected, classes))
    _log.info("%d images, %d boxes pre-drawn", len(tasks), sum(len(task.predictions) for task in tasks))


def task_lines(tasks: Sequence[AnnotationTask]) -> bytes:
    """Return tasks as JSON lines: in ASCII, so that no reader takes a separator in a class name for a line's end."""
    return "".join(json.dumps(task.model_dump(mode="json")) + "\n" for task in tasks).encode()


def _check_complete(selected: Sequence[_Row], known: Mapping[str, _Row], where: Path, problem_text: str) -> None:
    for row in selected:
        if row["image_id"] not in known:
            problem = f"picked image {row['image_id']} {problem_text}, expected every picked image to be complete"
            raise UserError(where, problem, "Run: dvc repro handoff")


def _rows_by_id(table: pa.Table, image_ids: pa.Array) -> dict[str, _Row]:
    """Return the rows of some images; of the rest of the pool no Python object is made."""
    return {row["image_id"]: row for row in _select_rows(table, image_ids).to_pylist()}


def _select_rows(table: pa.Table, image_ids: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["image_id"], value_set=image_ids))


def _load_detections(image_ids: pa.Array, shards: Path) -> pa.Table:
    """Return the rows of the selected images, sorted by image id; of shards without any only the ids are read."""
    parts = []
    for path in shard_paths(shards):
        found = pc.is_in(files.read_table(path, DETECTIONS, columns=["image_id"])["image_id"], value_set=image_ids)
        if pc.any(found).as_py():
            parts.append(files.read_table(path, DETECTIONS).filter(found))
    return pa.concat_tables([DETECTIONS.empty_table(), *parts]).sort_by("image_id")


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
    for name, kind in (
        ("is_random_pick", pa.bool_()),
        ("picked_by", pa.string()),
        ("num_candidates", pa.int64()),
    ):
        values = [selected_by_id[image_id][name] for image_id in found["image_id"].to_pylist()]
        found = found.append_column(name, pa.array(values, kind))
    return found.cast(with_class_names(DETECTIONS_AT_SELECTION, classes))


def _annotation_task(
    selected: _Row, image: _Row, detected: _Row, classes: Sequence[str], params: PreannotationParams
) -> AnnotationTask:
    drawn = suppress_overlapping(
        np.array(detected["boxes_xyxy"], dtype=np.float64).reshape(-1, 4),
        np.array(detected["scores"], dtype=np.float64),
        np.array(detected["class_ids"], dtype=np.int64),
        np.array(detected["class_probs"], dtype=np.float64).reshape(len(detected["scores"]), len(classes) + 1),
        params.score_threshold,
        params.suppress_iou,
    )
    predictions = [
        Prediction(
            category=classes[detected["class_ids"][n]],
            xyxy_px=_clip_box(detected["boxes_xyxy"][4 * n : 4 * n + 4], image),
            score=_probability(detected["scores"][n]),
            doubt=_doubt(detected, n),
            runner_up=None if runner_up is None else RunnerUp(category=classes[runner_up[0]], score=runner_up[1]),
        )
        for n, runner_up in drawn
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


def suppress_overlapping(
    boxes_N4: Floats,
    scores_N: Floats,
    class_ids_N: Ints,
    class_probs_NK: Floats,
    score_threshold: float,
    suppress_iou: float,
) -> list[tuple[int, tuple[int, float] | None]]:
    """Choose one detection for each object, whatever the classes (docs/method.md#pre-drawn-boxes).

    Args:
        boxes_N4: corners x1, y1, x2, y2.
        scores_N: of the detections.
        class_ids_N: index of the likeliest class.
        class_probs_NK: (N, K+1) posteriors, background last.
        score_threshold: detections with a lower score take no part, classes with a lower one are not named.
        suppress_iou: with a larger IoU two detections are one object.

    Returns:
        Detections by falling score; with each the next likeliest class, with its score: the largest among the
        detection's own posterior and the scores of those it stands for.
    """
    num_classes = class_probs_NK.shape[1] - 1
    order = [n for n in np.argsort(-scores_N, kind="stable").tolist() if scores_N[n] >= score_threshold]
    iou_NN = pairwise_iou(boxes_N4, boxes_N4)
    drawn: list[tuple[int, tuple[int, float] | None]] = []
    while order:
        best = order[0]
        absorbed = [n for n in order[1:] if iou_NN[best, n] > suppress_iou]
        score_K = class_probs_NK[best, :num_classes].copy()
        np.maximum.at(score_K, class_ids_N[absorbed], scores_N[absorbed])
        score_K[class_ids_N[best]] = -1.0
        second = int(score_K.argmax())
        # The order of classes follows the scores, so the runner-up is never likelier than the class that is drawn.
        named = (
            (second, _probability(min(score_K[second], scores_N[best]))) if score_K[second] >= score_threshold else None
        )
        drawn.append((best, named))
        order = [n for n in order[1:] if n not in absorbed]
    return drawn


def _doubt(detected: _Row, n: int) -> float:
    """1 - s q: doubt that class and place of a detection are right (docs/method.md#box-doubt)."""
    stability = detected["stability"] or [1.0] * len(detected["scores"])
    return round(1 - _probability(detected["scores"][n]) * _probability(stability[n]), _DECIMALS_DOUBT)


def _probability(score: float) -> float:
    return min(max(float(score), 0.0), 1.0)


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
        open_ranking=workspace.derived("select") / "open_ranking.parquet",
        out=workspace.derived("handoff"),
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("handoff", _body)


if __name__ == "__main__":
    main()
