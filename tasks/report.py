"""One HTML page on the campaign so far, and the history that the next round's page starts from.

Reads  data/images, data/import.json, data/labels, data/previous, derived/prepare/quarantine.json, derived/assemble, derived/train/summary.json, derived/train/curves.parquet, derived/evaluate, derived/score, derived/weigh, derived/select, derived/handoff
Writes derived/report
Params classes, scoring, report
"""  # noqa: E501

import logging
from collections.abc import Sequence
from pathlib import Path

from tasks import files
from tasks.entry import run_stage
from tasks.params import load
from tasks.paths import Workspace
from tasks.reporting.evidence import read_evidence
from tasks.reporting.history import entry_of, extended
from tasks.reporting.page import render
from tasks.sections import ReportParams, ScoringParams

_log = logging.getLogger(__name__)


def report(
    classes: Sequence[str], scoring: ScoringParams, params: ReportParams, *, workspace: Workspace, out: Path
) -> None:
    """Write ``report.html`` and ``history.json``.

    Args:
        classes: class names in the order of params.yaml.
        scoring: how the metrics were formed, for the captions.
        params: how many images to show.
        workspace: every other stage's outputs, the images, and the history of earlier rounds.
        out: folder for the two files.

    Raises:
        UserError: an output of another stage is missing or malformed.
    """
    evidence = read_evidence(workspace, classes)
    history = extended(evidence.previous, entry_of(evidence))
    files.write_json(out / "history.json", history)
    files.write_bytes(out / "report.html", render(evidence, history, scoring, params.thumbnails).encode())
    _log.info("report: %d rounds, %d images to label next", len(history), evidence.picked["picked"])


def _body(workspace: Workspace) -> None:
    params = load(workspace.params, "classes", "scoring", "report")
    report(params.classes, params.scoring, params.report, workspace=workspace, out=workspace.derived("report"))


def main() -> None:
    """Run the stage in the current folder."""
    run_stage("report", _body)


if __name__ == "__main__":
    main()
