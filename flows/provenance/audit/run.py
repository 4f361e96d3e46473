"""All checks of an audit in one go.

The part of the audit that takes a second: what a model's promotion rests on, in order or not.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from flows.provenance.audit.artifacts import data_checks
from flows.provenance.audit.findings import AuditScope, Check, make_check
from flows.provenance.audit.images import image_checks
from flows.provenance.audit.ledger_chain import chain_findings, record_checks
from flows.provenance.audit.metrics import evaluation_checks, evaluation_findings
from flows.provenance.audit.mlflow import mlflow_checks
from flows.provenance.snapshot import RoundSnapshot, load_snapshots
from flows.workspace.dvc_cache import MissingDataError, file_md5
from flows.workspace.git import read_blob
from flows.workspace.state import newest_round
from tasks.data.paths import Workspace
from tasks.params import format_validation_error
from tasks.params.promotion import AuditParams
from tasks.runtime.errors import UserError
from tasks.storage import files


def run_audit(
    workspace: Workspace, round_number: int | None, *, recompute: bool, on_check: Callable[[Check], None]
) -> list[Check]:
    """Examine the rounds up to one, each check reported as it is done.

    Args:
        workspace: the campaign.
        round_number: of the model; None: all rounds, and the workspace with them.
        recompute: measure the model's weights once more.
        on_check: hears of each check.

    Raises:
        UserError: there is no finished round, or a ledger cannot be read.
    """
    scope = _audit_scope(workspace, round_number)
    params = _audit_params(workspace)
    areas = {
        "records": record_checks(scope),
        "data": data_checks(scope),
        "pictures": image_checks(scope, params.max_hamming_distance),
        "evaluation": evaluation_checks(scope, recompute),
        "MLflow": mlflow_checks(scope),
    }
    checks: list[Check] = []
    for area, area_checks in areas.items():
        for one in _guarded_checks(area, area_checks):
            checks.append(one)
            on_check(one)
    return checks


def _guarded_checks(area: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks of an area, even where altered bytes cannot be read any more and end them early."""
    try:
        yield from checks
    except (UserError, OSError, ValueError) as error:
        message = " ".join(str(error).split())
        yield make_check(area, "can be read", "what is stored", [message])


def _audit_params(workspace: Workspace) -> AuditParams:
    """As committed: what somebody did to the file since then is for a check to find.

    The other sections play no part, so that a campaign of an older Gleaner can be audited.
    """
    committed = read_blob(workspace.root, "HEAD", "params.yaml")  # None where git's own copy of it is damaged
    content = yaml.safe_load(workspace.params.read_bytes() if committed is None else committed) or {}
    try:
        return AuditParams.model_validate(content.get("audit", {}))
    except ValidationError as error:
        problems = "; ".join(f"audit.{format_validation_error(problem)}" for problem in error.errors())
        raise UserError("params.yaml", problems) from None


def _audit_scope(workspace: Workspace, round_number: int | None) -> AuditScope:
    rounds = load_snapshots(workspace)
    if not rounds:
        fix = "Run: gleaner run"
        raise UserError(Path("rounds"), "the folder holds no ledger, expected that of a finished round", fix)
    last = max(rounds) if round_number is None else round_number
    return AuditScope(
        workspace,
        {number: rounds[number] for number in sorted(rounds) if number <= last},
        last == max(rounds),
        newest_round(workspace) > max(rounds),
    )


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
