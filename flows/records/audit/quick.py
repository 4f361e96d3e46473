"""The part of the audit that takes a second: what a model's promotion rests on, in order or not."""

from collections.abc import Mapping

from flows.records.audit.evaluation import evaluation_findings
from flows.records.audit.records import chain_findings
from flows.records.dvc_objects import MissingBytesError, md5_of
from flows.records.recorded import RecordedRound
from tasks import files
from tasks.paths import Workspace

_DECIDING = (
    "derived/train/teacher.pth",
    "derived/train/summary.json",
    "derived/evaluate/predictions.parquet",
    "derived/assemble/val.parquet",
)


def quick_findings(workspace: Workspace, candidate: RecordedRound, rounds: Mapping[int, RecordedRound]) -> list[str]:
    """What is not as recorded: ledgers, labels, and the files the gate decides by."""
    so_far = {number: recorded for number, recorded in rounds.items() if number <= candidate.number}
    found = chain_findings(so_far)
    for batch in candidate.ledger.get("labels", ()):
        path = workspace.label_batch(batch["batch"])
        if not path.is_file() or files.sha256_file(path) != batch["sha256"]:
            found.append(f"data/labels/{path.name} is not the batch {candidate.name} learned from")
    for name in _DECIDING:
        try:
            if md5_of(candidate.stored(name)) != candidate.digest(name):
                found.append(f"{name} of {candidate.name} is altered in the DVC cache")
        except MissingBytesError as error:
            found.append(str(error))
    return found or list(evaluation_findings(candidate))
