"""Read everything that the page is made from."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.data.label_store import read_batch, read_labels
from tasks.data.paths import STAGES, Workspace
from tasks.data.schemas import CANDIDATE_SCORES, PREDICTIONS, SCORES, SELECTION, UNCERTAINTY, AnnotationTask
from tasks.evaluation.label_check import DoubtfulLabel, doubtful_labels
from tasks.evaluation.model_agreement import model_agreement
from tasks.reporting.agreement import agreement_metrics
from tasks.reporting.pool_map import PoolMap, make_pool_map
from tasks.runtime.errors import UserError
from tasks.storage import files

Document = Mapping[str, Any]


@dataclass(frozen=True)
class ReportData:
    """One round's outputs, and the history of the rounds before it."""

    root: Path
    """Folder that image uris are relative to."""
    val: Path
    """The validation set, schemas.ANNOTATED."""
    classes: Sequence[str]
    past_rounds: Sequence[Document]
    """History entries of earlier rounds, oldest first."""
    assemble_summary: Document
    train_summary: Document
    curves: pd.DataFrame | None
    """One row per training iteration; None where train kept none."""
    metrics: Document
    """Of teacher and student, in percent."""
    dwa: Document
    pool_error: Document
    """Estimated error of the teacher on the pool (docs/method.md#pool-error)."""
    selection_summary: Document
    """Summary of the selection."""
    teacher_agreement: float | None
    """F1 of the objects that this teacher and the previous one report on the validation images; None without one."""
    agreement: Document
    """Of the newest label batch: with the pre-drawn boxes, and between annotators."""
    pool_metrics: pd.DataFrame
    """schemas.SCORES joined with schemas.UNCERTAINTY, by image_id, for every unlabeled image."""
    selection: pd.DataFrame
    """schemas.SELECTION, by rank."""
    pool_map: PoolMap | None
    """None: fewer than three images."""
    expected_boxes_per_class: Mapping[str, float]
    """Boxes that the teacher expects in the next batch, by class name."""
    boxes_of_newest_batch: Mapping[str, int]
    """Boxes that people drew in the newest batch, by class name."""
    doubtful_labels: Sequence[DoubtfulLabel]
    """Labeled images whose labels the teachers contradict, the surest error first."""
    tasks: Sequence[AnnotationTask]
    """What annotators get, by rank."""
    doubt_maps: Mapping[str, Sequence[Sequence[int]]]
    """Rows of the map of objectness entropy in percent of picked images, by image id; empty: it is not measured."""
    import_counts: Document
    """What ``gleaner init`` counted: of ``data/import_report.json``."""
    rejected: Mapping[str, Sequence[Document]]
    """``{where, reason}`` by the step that set it aside."""
    stage_seconds: Mapping[str, float]
    """Of each stage's last run, in the order of the stages; empty where nothing was timed."""


def load_report_data(workspace: Workspace, classes: Sequence[str]) -> ReportData:
    """Read the outputs of the earlier stages of a workspace.

    Raises:
        UserError: something is missing or not as its contract says.
    """
    select_folder = workspace.derived("select")
    import_report = files.read_json(workspace.import_report)
    store = read_labels(workspace.labels)
    newest = read_batch(workspace.label_batch(store.newest_batch))
    selection = files.read_table(select_folder / "selection.parquet", SELECTION)
    return ReportData(
        root=workspace.root,
        val=workspace.derived("assemble") / "val.parquet",
        classes=classes,
        past_rounds=_history(workspace.warm_start / "history.json"),
        assemble_summary=files.read_json(workspace.derived("assemble") / "summary.json"),
        train_summary=files.read_json(workspace.derived("train") / "summary.json"),
        curves=_curves(workspace.derived("train") / "curves.parquet"),
        metrics=files.read_json(workspace.derived("evaluate") / "metrics.json"),
        dwa=files.read_json(workspace.derived("weigh") / "dwa.json"),
        pool_error=files.read_json(workspace.derived("score") / "pool_error.json"),
        selection_summary=files.read_json(select_folder / "summary.json"),
        teacher_agreement=_teacher_agreement(workspace),
        agreement=agreement_metrics(newest, store.all_annotations),
        pool_metrics=_pool_metrics(workspace),
        selection=selection.to_pandas(),
        pool_map=_pool_map(workspace, selection),
        doubtful_labels=doubtful_labels(
            workspace.derived("assemble") / "labeled.parquet",
            workspace.derived("infer"),
            workspace.detections_at_selection,
            classes,
            store.checks,
        ),
        expected_boxes_per_class=_expected_boxes(workspace, selection, classes),
        boxes_of_newest_batch=Counter(
            box.category for label in newest.images if label.checks_batch is None for box in label.boxes
        ),
        tasks=_read_tasks(workspace.derived("handoff") / "manifest.jsonl"),
        doubt_maps=_doubt_maps(workspace.derived("handoff") / "detections.parquet"),
        import_counts=import_report.get("counts", {}),
        rejected={
            "import": import_report.get("set_aside", []),
            "prepare": files.read_json(workspace.derived("prepare") / "quarantine.json"),
        },
        stage_seconds=_stage_seconds(workspace),
    )


def _history(path: Path) -> list[Document]:
    history = files.read_json(path)
    if not isinstance(history, list) or not all(isinstance(entry, dict) and "round" in entry for entry in history):
        raise UserError(path, "the content is not a list of rounds, expected one", "Run: dvc checkout data/warm_start")
    return history


def _pool_map(workspace: Workspace, selection: pa.Table) -> PoolMap | None:
    picked = selection["image_id"].to_pylist()
    explored = selection.filter(selection["is_random_pick"])["image_id"].to_pylist()
    assembled = workspace.derived("assemble")
    return make_pool_map(
        workspace.derived("infer"), assembled / "unlabeled.parquet", assembled / "labeled.parquet", picked, explored
    )


def _expected_boxes(workspace: Workspace, selection: pa.Table, classes: Sequence[str]) -> dict[str, float]:
    scores = files.read_table(
        workspace.derived("score") / "scores.parquet", SCORES, columns=["image_id", "expected_boxes_per_class"]
    )
    picked = scores.filter(pc.is_in(scores["image_id"], value_set=selection["image_id"].combine_chunks()))
    rows = picked["expected_boxes_per_class"].to_pylist()
    return {name: round(sum(row[number] for row in rows), 2) for number, name in enumerate(classes)}


def _teacher_agreement(workspace: Workspace) -> float | None:
    previous = workspace.warm_start / "val_predictions.parquet"
    if not previous.is_file():  # the first round
        return None
    both = (workspace.derived("evaluate") / "predictions.parquet", previous)
    teachers = (
        table.filter(pc.equal(table["model"], "teacher")) for table in (files.read_table(p, PREDICTIONS) for p in both)
    )
    return model_agreement(*teachers)


def _curves(path: Path) -> pd.DataFrame | None:
    curves: pd.DataFrame | None = pq.read_table(path).to_pandas() if path.is_file() else None
    return curves


def _pool_metrics(workspace: Workspace) -> pd.DataFrame:
    scores = files.read_table(
        workspace.derived("score") / "scores.parquet", SCORES, columns=CANDIDATE_SCORES
    ).to_pandas()
    weights = files.read_table(workspace.derived("weigh") / "uncertainty.parquet", UNCERTAINTY).to_pandas()
    joined: pd.DataFrame = scores.set_index("image_id").join(weights.set_index("image_id"), how="inner")
    return joined


def _read_tasks(manifest: Path) -> list[AnnotationTask]:
    try:
        lines = manifest.read_text(encoding="utf-8").split("\n")  # a class name may hold other line ends
        return [AnnotationTask.model_validate_json(line) for line in lines if line.strip()]
    except FileNotFoundError:
        raise UserError(manifest, "the file is missing, expected one task a line", "Run: dvc repro handoff") from None
    except ValueError as error:
        problem = f"a line is not a task ({' '.join(str(error).split())[:200]}), expected one task a line"
        raise UserError(manifest, problem, "Run: dvc repro --force handoff") from None


def _doubt_maps(path: Path) -> dict[str, list[list[int]]]:
    """Read the maps of the images that annotators get."""
    columns = ["image_id", "objectness_entropy_map"]
    rows = pq.read_table(path, columns=columns).to_pylist() if path.is_file() else []
    found = {row["image_id"]: row["objectness_entropy_map"] for row in rows}
    return {
        image_id: [flat[first : first + math.isqrt(len(flat))] for first in range(0, len(flat), math.isqrt(len(flat)))]
        for image_id, flat in found.items()
        if flat
    }


def _stage_seconds(workspace: Workspace) -> dict[str, float]:
    """Not the report's own: it is still running, and what lies there is from the run before."""
    timed = {stage: workspace.timing(stage) for stage in STAGES if stage != "report"}
    return {stage: float(files.read_json(path)["seconds"]) for stage, path in timed.items() if path.is_file()}
