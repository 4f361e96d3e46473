"""What Prefect's pages show of a campaign: figures by round, picked images, where the report is, and progress.

Every artifact has a key of its campaign, so a new round is a new version of the same page. A night that is
repeated adds nothing where nothing changed. None of this can break a night: it is a view.
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

from flows import vcs
from flows.naming import campaign_key
from flows.records.ledger import all_ledgers, read_ledger
from flows.watching.flow_logs import heard_by
from flows.watching.stage_progress import Progress, StageProgress
from tasks import files
from tasks.contracts import INDEX, SELECTION
from tasks.paths import Workspace

_UPDATE_EVERY_S = 5.0


def show_round(workspace: Workspace, round_number: int) -> None:
    """Make the pages of a published round."""
    key = campaign_key(workspace)
    title = f"{workspace.root.name}, round {round_number}"
    _show(lambda: TableArtifact(key=f"{key}-rounds", table=_figures(workspace), description=f"{title}: all rounds"))
    _show(lambda: TableArtifact(key=f"{key}-picked", table=_picked(workspace), description=f"{title}: asked for next"))
    _show(lambda: MarkdownArtifact(key=f"{key}-report", markdown=_report(workspace, round_number), description=title))


@contextmanager
def progress_shown(workspace: Workspace) -> Iterator[None]:
    """Keep a progress page up to date with what stages print inside this block."""
    with heard_by(_ProgressPage(f"{campaign_key(workspace)}-progress", workspace.root.name)):
        yield


def _show(make: Callable[[], Any]) -> None:
    """Create an artifact unless its newest version says the same."""
    try:
        artifact = make()
        newest: Any = Artifact.get(key=artifact.key)  # in a thread without an event loop, so it is no coroutine
        content = artifact.format(_sync=True)
        if newest is None or (newest.data, newest.description) != (content, artifact.description):
            artifact.create(_sync=True)
    except Exception as error:  # the server's, its client's, or a file's of an older round: no reason to fail a round
        get_run_logger().warning("An artifact was not made: %s: %s", type(error).__name__, str(error).split("\n")[0])


def _figures(workspace: Workspace) -> list[dict[str, Any]]:
    """One row a round."""
    return [
        {
            "round": ledger["round"],
            "labels": ledger["figures"]["labels"],
            "boxes": ledger["figures"]["boxes"],
            "teacher mAP": _rounded(ledger["figures"]["teacher"]["mAP"]),
            "student mAP": _rounded(ledger["figures"]["student"]["mAP"]),
            "weights used": ledger["figures"]["weights_used"],
            "minutes": round(ledger["times"]["total_stage_seconds"] / 60, 1),
            "model version": ledger["mlflow"]["model_version"],
        }
        for ledger in all_ledgers(workspace)
    ]


def _picked(workspace: Workspace) -> list[dict[str, Any]]:
    """The images of the next batch by rank, each with its reason."""
    selection = files.read_table(workspace.derived("select") / "selection.parquet", SELECTION)
    names = files.read_table(workspace.index, INDEX).select(["image_id", "source"]).to_pylist()
    source_of = {row["image_id"]: row["source"] for row in names}
    return [
        {
            "rank": row["rank"],
            "image": source_of.get(row["image_id"], row["image_id"]),
            "id": row["image_id"],
            "uncertainty": _rounded(row["uncertainty"], 3),
            "expected boxes": _rounded(row["expected_boxes"]),
            "expected minutes": _rounded(row["expected_minutes"]),
            "reason": row["reason"],
        }
        for row in sorted(selection.to_pylist(), key=lambda row: row["rank"])
    ]


def _report(workspace: Workspace, round_number: int) -> str:
    ledger = read_ledger(workspace, round_number)
    tracked = ledger["mlflow"]
    return "\n".join(
        [
            f"**{workspace.root.name}**, {vcs.round_tag(round_number)}",
            "",
            f"- Report: `{workspace.derived('report') / 'report.html'}`, and in MLflow as `report/report.html`",
            f"- MLflow: experiment `{tracked['experiment']}`, run `{tracked['run_id']}`, "
            f"model `{tracked['model_name']}` version {tracked['model_version']}",
            f"- Git: tag `{ledger['tag']}`",
        ]
    )


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)


class _ProgressPage(logging.Handler):
    """Turns the lines of stages into one progress artifact a stage."""

    def __init__(self, key: str, campaign: str) -> None:
        super().__init__(logging.INFO)
        self._key = key
        self._campaign = campaign
        self._stage = ""
        self._follow = StageProgress()
        self._page: Any = None
        self._next_s = 0.0
        self._given_up = False

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one record."""
        stage = getattr(record, "gleaner_line", None)
        if stage is None:
            return
        if stage != self._stage:
            self._begin(stage)
        now_s = time.monotonic()
        progress = self._follow.take(record.getMessage(), now_s)
        due = progress is not None and (progress.done == progress.total or now_s >= self._next_s)
        if progress is not None and due and not self._given_up:
            self._next_s = now_s + _UPDATE_EVERY_S
            self._tell(stage, progress)

    def _begin(self, stage: str) -> None:
        self._stage = stage
        self._follow = StageProgress()
        self._page = None
        self._next_s = 0.0
        self._given_up = False

    def _tell(self, stage: str, progress: Progress) -> None:
        description = f"{self._campaign}, {stage}: {progress}"
        try:
            if self._page is None:
                self._page = create_progress_artifact(progress.percent, self._key, description)
            else:
                update_progress_artifact(self._page, progress.percent, description)
        except Exception:  # the server is away: this stage goes on without its page
            self._given_up = True
