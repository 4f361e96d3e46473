"""Write the manifest of the selected images for the annotators, with boxes pre-drawn by the teacher.

Reads  derived/assemble/labeled.parquet, derived/assemble/unlabeled.parquet, derived/infer, derived/score,
       derived/select
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

from tasks.data.detections import shard_paths
from tasks.data.paths import Workspace
from tasks.data.schemas import (
    ALL_METRICS,
    DETECTIONS,
    DETECTIONS_AT_SELECTION,
    RELABEL,
    SCORES,
    SELECTION,
    UNLABELED,
    AnnotationTask,
    with_class_names,
)
from tasks.params import load_stage_params
from tasks.params.stages import PreannotationParams
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import stage_main
from tasks.selection.check_tasks import check_tasks
from tasks.selection.preannotation import predrawn_boxes
from tasks.storage import files

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
    relabel: Path,
    labeled: Path,
    out: Path,
) -> None:
    """Write ``manifest.jsonl`` (AnnotationTask) and ``detections.parquet`` (DETECTIONS_AT_SELECTION).

    Behind the picked images the manifest holds the labels to be checked, with their present boxes; no detections are
    stored of these, since the teacher has seen the labels. ``open_tasks.jsonl`` holds the same for the images that are
    with the annotators already.

    Args:
        params: score a detection needs to be drawn, and overlap up to which two boxes are two objects.
        classes: class names in the order of their indices.
        unlabeled: images without labels, schemas.UNLABELED.
        detections: folder of shards, schemas.DETECTIONS; read one after the other.
        scores: metrics of the pool, schemas.SCORES.
        selection: selected images, schemas.SELECTION.
        open_ranking: images that are with the annotators, in their new order, schemas.SELECTION.
        relabel: labels to be checked, schemas.RELABEL.
        labeled: labeled images with their boxes, schemas.ANNOTATED; read where a label is to be checked.
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
    scores_by_id = _rows_by_id(files.read_table(scores, SCORES, columns=["image_id", *ALL_METRICS]), shown_ids)
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
    tasks += check_tasks(params, classes, files.read_table(relabel, RELABEL), labeled, detections)
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
    for name in ALL_METRICS:
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
    return AnnotationTask(
        image_id=selected["image_id"],
        uri=image["uri"],
        width_px=image["width_px"],
        height_px=image["height_px"],
        rank=selected["rank"],
        reason=selected["reason"],
        uncertainty=selected["uncertainty"],
        predictions=predrawn_boxes(detected, image, classes, params),
        model_digest=detected["model_digest"],
    )


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
        relabel=workspace.derived("select") / "relabel.parquet",
        labeled=workspace.derived("assemble") / "labeled.parquet",
        out=workspace.derived("handoff"),
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("handoff", _body)


if __name__ == "__main__":
    main()
