"""Write the HTML page of the campaign, and the history that the next round's page starts from.

Reads  data/detections_at_selection, data/images, data/import_report.json, data/labels, data/warm_start, derived/prepare/quarantine.json, derived/assemble, derived/train/summary.json, derived/train/curves.parquet, derived/evaluate, derived/infer, derived/score, derived/weigh, derived/select, derived/handoff
Writes derived/report
Params classes, scoring, report, stopping
"""  # noqa: E501

import logging
from collections.abc import Sequence
from pathlib import Path

from tasks.data.paths import Workspace
from tasks.params import load_stage_params
from tasks.params.stages import ReportParams, ScoringParams, StoppingParams
from tasks.reporting.history import append_round, round_entry, with_stopping_advice
from tasks.reporting.page import render
from tasks.reporting.report_data import load_report_data
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

_log = logging.getLogger(__name__)


def report(
    classes: Sequence[str],
    scoring: ScoringParams,
    params: ReportParams,
    stopping: StoppingParams,
    *,
    workspace: Workspace,
    out: Path,
) -> None:
    """Write ``report.html``, ``history.json`` and ``label_check.json``, the labels to look at again.

    Args:
        classes: class names in the order of params.yaml.
        scoring: how the metrics were formed, for the captions.
        params: how many images to show.
        stopping: when the page advises to stop.
        workspace: every other stage's outputs, the images, and the history of earlier rounds.
        out: folder for the two files.

    Raises:
        UserError: an output of another stage is missing or malformed.
    """
    data = load_report_data(workspace, classes)
    history = with_stopping_advice(append_round(data.past_rounds, round_entry(data)), stopping)
    files.write_json(out / "history.json", history)
    files.write_json(out / "label_check.json", [label.as_json() for label in data.doubtful_labels])
    files.write_bytes(out / "report.html", render(data, history, scoring, params.thumbnails).encode())
    _log.info("report: %d rounds, %d images to label next", len(history), data.selection_summary["selected"])


def _body(workspace: Workspace) -> None:
    params = load_stage_params(workspace.params, "classes", "scoring", "report", "stopping")
    report(
        params.classes,
        params.scoring,
        params.report,
        params.stopping,
        workspace=workspace,
        out=workspace.derived("report"),
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("report", _body)


if __name__ == "__main__":
    main()
