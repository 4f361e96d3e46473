"""Command ``gleaner autolabel``: label the pool as far as precision is shown, and check that with an audit."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from flows.cli.options import JsonOption, TrustOption, WorkspaceOption, look_at
from flows.runtime.masking import SafeConsole

if TYPE_CHECKING:
    from tasks.data.paths import Workspace

_ORACLE = "oracle"


def autolabel(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="New folder for the labels; with --audit, one that this command wrote."),
    ],
    audit: Annotated[
        str | None,
        typer.Option(
            "--audit",
            metavar="LABELS",
            help="Compare the audit's images as people labeled them with what was promised: a file or folder of COCO, "
            "VOC, YOLO, CVAT or Label Studio annotations, or the word oracle for the simulated annotator.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model whose detections are accepted: @candidate, /3 or round-0003.", show_default="champion"
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
    trust_campaign: TrustOption = False,
) -> None:
    """Accept the champion's boxes as labels where their precision is shown; the rest is ordered for people.

    Writes COCO, YOLO and VOC with the provenance of each box, and a random sample for people to check. Nothing is
    written to data/labels: accepted labels train no model.
    """
    from flows.workspace.run_lock import require_workspace

    campaign = require_workspace(workspace)
    look_at(campaign.root, trust_campaign=trust_campaign)
    if audit is not None:
        from tasks.autolabel.summary import render_audit

        document = _audit(campaign, folder.absolute(), audit)
        text = render_audit(document)
    else:
        from tasks.autolabel.summary import render_summary

        document = _write(campaign, folder.absolute(), model, SafeConsole(stderr=True))
        text = render_summary(document)
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        SafeConsole().print(Markdown(text))


def _write(campaign: "Workspace", folder: Path, model_ref: str | None, console: Console) -> dict[str, Any]:
    from flows.annotation.batches import offered_annotation_batches, open_images
    from flows.autolabel import detections_of, find_model, publish_audit, require_outputs
    from flows.workspace.run_lock import run_lock
    from tasks.autolabel.run import SUMMARY, autolabel, inputs_sha256
    from tasks.data.label_store import read_labels
    from tasks.params import load_params
    from tasks.runtime.errors import UserError
    from tasks.storage import files

    params = load_params(campaign.params)
    with run_lock(campaign):
        found = find_model(campaign, model_ref)
        require_outputs(campaign)
        store = read_labels(campaign.labels)
        open_batches = {
            image_id: batch.batch
            for batch in offered_annotation_batches(campaign)
            for image_id in open_images(batch, store)
        }
        if folder.is_dir() and any(folder.iterdir()):
            path = folder / SUMMARY
            written: dict[str, Any] = files.read_json(path) if path.is_file() else {}
            if written.get("inputs_sha256") == inputs_sha256(campaign, params, found.ref, open_batches):
                console.print(f"{folder} is complete already; nothing was written.", soft_wrap=True, highlight=False)
                return written
            problem = "the folder holds something else than these labels of this model, expected a new folder"
            raise UserError(folder, problem, "Name another one: an audit belongs to the labels it was drawn from.")
        detections = detections_of(campaign, params, found, on_line=lambda line: console.print(line, highlight=False))
        result = autolabel(campaign, params, found.ref, detections, open_batches)
    with files.atomic_folder(folder) as unfinished:
        result.write(unfinished)
        publish_audit(campaign, result, unfinished)
    return result.summary


def _audit(campaign: "Workspace", folder: Path, labels: str) -> dict[str, Any]:
    from flows.autolabel import ask_oracle, read_answers
    from tasks.autolabel.audit import RESULT, judge_audit, read_sample
    from tasks.autolabel.summary import render_audit
    from tasks.params import load_params
    from tasks.storage import files

    params, sample = load_params(campaign.params), read_sample(folder)
    problems: list[str] = []
    if labels == _ORACLE:
        answers = ask_oracle(campaign, params, folder)
    else:
        with tempfile.TemporaryDirectory(prefix="gleaner-audit-") as scratch:
            answers, problems = read_answers(folder, Path(labels), params.classes, Path(scratch))
    result = judge_audit(sample, answers, params.classes)
    result["problems"] = problems
    files.write_json(folder / "audit" / RESULT, result)
    files.write_bytes(folder / "audit" / "result.md", render_audit(result).encode())
    return result
