"""Publish Prefect artifacts of a campaign: metrics by round, selected images, where the report is, and progress.

Every artifact has a key of its campaign, so a new round is a new version of the same page. A run that is repeated adds
nothing where nothing changed. An artifact that cannot be published is a warning, never an error.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect.artifacts import (
    Artifact,
    MarkdownArtifact,
    TableArtifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from flows.monitoring.json_logging import attach_handler
from flows.monitoring.progress import Progress, StageProgress
from flows.workspace import git
from flows.workspace.git import campaign_key
from flows.workspace.rounds import all_ledgers, read_ledger
from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX, SELECTION
from tasks.storage import files

_UPDATE_EVERY_S = 5.0


def publish_round_artifacts(workspace: Workspace, round_number: int) -> None:
    """Make the pages of a published round."""
    key = campaign_key(workspace)
    title = f"{workspace.root.name}, round {round_number}"
    _create_if_changed(
        lambda: TableArtifact(key=f"{key}-rounds", table=_metrics_table(workspace), description=f"{title}: all rounds")
    )
    _create_if_changed(
        lambda: TableArtifact(
            key=f"{key}-picked", table=_selected_images(workspace), description=f"{title}: selected for labeling"
        )
    )
    _create_if_changed(
        lambda: MarkdownArtifact(
            key=f"{key}-report", markdown=_report_markdown(workspace, round_number), description=title
        )
    )


@contextmanager
def progress_artifact(workspace: Workspace) -> Iterator[None]:
    """Keep a progress page up to date with what stages print inside this block."""
    with attach_handler(_ProgressArtifactHandler(f"{campaign_key(workspace)}-progress", workspace.root.name)):
        yield


def _create_if_changed(create_artifact: Callable[[], Any]) -> None:
    """Create an artifact unless its newest version has the same content."""
    try:
        artifact = create_artifact()
        newest: Any = Artifact.get(key=artifact.key)  # in a thread without an event loop, so it is no coroutine
        content = artifact.format(_sync=True)
        if newest is None or (newest.data, newest.description) != (content, artifact.description):
            artifact.create(_sync=True)
    except Exception as error:  # the server's, its client's, or a file's of an older round: no reason to fail a round
        get_run_logger().warning("An artifact was not made: %s: %s", type(error).__name__, str(error).split("\n")[0])


def _metrics_table(workspace: Workspace) -> list[dict[str, Any]]:
    """Return the table of rounds, one row per round."""
    return [
        {
            "round": ledger["round"],
            "labels": ledger["metrics"]["labels"],
            "boxes": ledger["metrics"]["boxes"],
            "teacher mAP": _round_or_none(ledger["metrics"]["teacher"]["mAP"]),
            "student mAP": _round_or_none(ledger["metrics"]["student"]["mAP"]),
            "weights used": ledger["metrics"]["acquisition_weights"],
            "minutes": round(ledger["times"]["total_stage_seconds"] / 60, 1),
            "model version": ledger["mlflow"]["model_version"],
        }
        for ledger in all_ledgers(workspace)
    ]


def _selected_images(workspace: Workspace) -> list[dict[str, Any]]:
    """Return the table of selected images by rank, each with its reason."""
    selection = files.read_table(workspace.derived("select") / "selection.parquet", SELECTION)
    names = files.read_table(workspace.index, INDEX).select(["image_id", "file_name"]).to_pylist()
    file_names = {row["image_id"]: row["file_name"] for row in names}
    return [
        {
            "rank": row["rank"],
            "image": file_names.get(row["image_id"], row["image_id"]),
            "id": row["image_id"],
            "uncertainty": _round_or_none(row["uncertainty"], 3),
            "expected boxes": _round_or_none(row["expected_boxes"]),
            "expected minutes": _round_or_none(row["expected_minutes"]),
            "reason": row["reason"],
        }
        for row in sorted(selection.to_pylist(), key=lambda row: row["rank"])
    ]


def _report_markdown(workspace: Workspace, round_number: int) -> str:
    ledger = read_ledger(workspace, round_number)
    mlflow_ref = ledger["mlflow"]
    return "\n".join(
        [
            f"**{workspace.root.name}**, {git.round_tag(round_number)}",
            "",
            f"- Report: `{workspace.derived('report') / 'report.html'}`, and in MLflow as `report/report.html`",
            f"- MLflow: experiment `{mlflow_ref['experiment']}`, run `{mlflow_ref['run_id']}`, "
            f"model `{mlflow_ref['model_name']}` version {mlflow_ref['model_version']}",
            f"- Git: tag `{ledger['tag']}`",
        ]
    )


def _round_or_none(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)


class _ProgressArtifactHandler(logging.Handler):
    """Turn the lines that stages print into one progress artifact per stage."""

    def __init__(self, key: str, campaign: str) -> None:
        super().__init__(logging.INFO)
        self._key = key
        self._campaign = campaign
        self._stage = ""
        self._stage_progress = StageProgress()
        self._artifact_id: Any = None
        self._next_update_s = 0.0
        self._is_disabled = False

    def emit(self, record: logging.LogRecord) -> None:
        """Update the artifact from one log record."""
        stage = getattr(record, "gleaner_line", None)
        if stage is None:
            return
        if stage != self._stage:
            self._start_stage(stage)
        now_s = time.monotonic()
        progress = self._stage_progress.update(record.getMessage(), now_s)
        due = progress is not None and (progress.done == progress.total or now_s >= self._next_update_s)
        if progress is not None and due and not self._is_disabled:
            self._next_update_s = now_s + _UPDATE_EVERY_S
            self._update_artifact(stage, progress)

    def _start_stage(self, stage: str) -> None:
        self._stage = stage
        self._stage_progress = StageProgress()
        self._artifact_id = None
        self._next_update_s = 0.0
        self._is_disabled = False

    def _update_artifact(self, stage: str, progress: Progress) -> None:
        description = f"{self._campaign}, {stage}: {progress}"
        try:
            if self._artifact_id is None:
                self._artifact_id = create_progress_artifact(progress.percent, self._key, description)
            else:
                update_progress_artifact(self._artifact_id, progress.percent, description)
        except Exception:  # the server is unavailable: this stage continues without its page
            self._is_disabled = True
