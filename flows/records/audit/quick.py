"""The part of the audit that takes a second: what a model's promotion rests on, in order or not."""

from collections.abc import Mapping

from flows.records.audit.evaluation import evaluation_findings
from flows.records.audit.records import chain_findings
from flows.records.dvc_objects import MissingDataError, file_md5
from flows.records.recorded import RoundSnapshot
from tasks import files
from tasks.paths import Workspace

_GATE_INPUTS = (
    "derived/train/teacher.pth",
    "derived/train/summary.json",
    "derived/evaluate/predictions.parquet",
    "derived/assemble/val.parquet",
)


def quick_findings(workspace: Workspace, candidate: RoundSnapshot, rounds: Mapping[int, RoundSnapshot]) -> list[str]:
    """What is not as recorded: ledgers, labels, and the files the gate decides by."""
    previous_rounds = {number: snapshot for number, snapshot in rounds.items() if number <= candidate.number}
    found = chain_findings(previous_rounds)
    for batch in candidate.ledger.get("labels", ()):
        path = workspace.label_batch(batch["batch"])
        if not path.is_file() or files.sha256_file(path) != batch["sha256"]:
            found.append(f"data/labels/{path.name} is not the batch {candidate.tag} learned from")
    for name in _GATE_INPUTS:
        try:
            if file_md5(candidate.cached_path(name)) != candidate.md5(name):
                found.append(f"{name} of {candidate.tag} is altered in the DVC cache")
        except MissingDataError as error:
            found.append(str(error))
    return found or list(evaluation_findings(candidate))
