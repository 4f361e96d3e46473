"""Run an audit: all checks of ``gleaner audit``, or the quick ones that precede every promotion."""

from collections.abc import Callable, Iterator, Mapping

from pydantic import ValidationError

from flows.provenance.audit import AuditScope, Check, make_check
from flows.provenance.audit.artifacts import artifact_checks, evaluation_checks, evaluation_findings
from flows.provenance.audit.exports import export_checks
from flows.provenance.audit.images import image_checks
from flows.provenance.audit.records import chain_findings, mlflow_checks, record_checks, relabel_checks
from flows.provenance.snapshot import RoundSnapshot, load_snapshots
from flows.workspace.dvc_cache import MissingDataError, file_md5
from flows.workspace.git import read_blob
from flows.workspace.rounds import newest_round
from tasks.data.paths import Workspace
from tasks.params import format_validation_error
from tasks.params.promotion import AuditParams
from tasks.runtime.errors import UserError
from tasks.storage import files

# What the gate reads of a candidate.
_GATE_INPUTS = (
    "derived/train/teacher.pth",
    "derived/train/summary.json",
    "derived/evaluate/predictions.parquet",
    "derived/assemble/val.parquet",
)


def run_audit(
    workspace: Workspace, round_number: int | None, *, recompute: bool, on_check: Callable[[Check], None]
) -> list[Check]:
    """Audit the rounds up to one.

    Args:
        workspace: the campaign.
        round_number: the last round to audit; None: all rounds, and the workspace with them.
        recompute: also evaluate the stored weights of the last round; takes minutes.
        on_check: called with each check as soon as it is done.

    Raises:
        UserError: there is no finished round, or a ledger cannot be read.
    """
    scope = _audit_scope(workspace, round_number)
    params = _audit_params(workspace)
    areas = {
        "records": record_checks(scope),
        "data": artifact_checks(scope),
        "labels": relabel_checks(scope),
        "images": image_checks(scope, params.max_hamming_distance),
        "evaluation": evaluation_checks(scope, recompute),
        "MLflow": mlflow_checks(scope),
        "exports": export_checks(scope),
    }
    checks: list[Check] = []
    for area, area_checks in areas.items():
        for check in _guarded_checks(area, area_checks):
            checks.append(check)
            on_check(check)
    return checks


def quick_findings(workspace: Workspace, candidate: RoundSnapshot, rounds: Mapping[int, RoundSnapshot]) -> list[str]:
    """Check what a promotion depends on, in about a second: ledgers, labels, and the files the gate reads.

    Args:
        workspace: the campaign.
        candidate: the round whose teacher may be promoted.
        rounds: all finished rounds, by number.
    """
    found = chain_findings({number: snapshot for number, snapshot in rounds.items() if number <= candidate.number})
    for batch in candidate.ledger["labels"]:
        path = workspace.label_batch(batch["batch"])
        actual = files.sha256_file(path) if path.is_file() else None
        if actual != batch["sha256"]:
            found.append(
                f"data/labels/{path.name}: SHA-256 is {actual}, expected {batch['sha256']} (ledger of {candidate.tag})"
            )
    for name in _GATE_INPUTS:
        try:
            actual, recorded = file_md5(candidate.cached_path(name)), candidate.md5(name)
            if actual != recorded:
                found.append(f"{name} of {candidate.tag}: MD5 in the DVC cache is {actual}, expected {recorded}")
        except MissingDataError as error:
            found.append(str(error))
    return found or list(evaluation_findings(candidate))


def _guarded_checks(area: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Yield the checks of an area; where altered bytes cannot be read any more, that is the last one's finding."""
    try:
        yield from checks
    except (UserError, OSError, ValueError) as error:
        message = " ".join(str(error).split())
        yield make_check(area, "stored files are readable", "what is stored", [message])


def _audit_params(workspace: Workspace) -> AuditParams:
    """Read section ``audit`` of the committed params.yaml; a later change of the file is a finding, not a parameter.

    The other sections are not read, so that their state cannot prevent an audit.
    """
    committed = read_blob(workspace.root, "HEAD", "params.yaml")  # None where git's own copy is damaged
    text = workspace.params.read_bytes() if committed is None else committed
    content = files.parse_yaml(text) or {}
    try:
        return AuditParams.model_validate(content.get("audit", {}))
    except ValidationError as error:
        problems = "; ".join(f"audit.{format_validation_error(problem)}" for problem in error.errors())
        raise UserError("params.yaml", problems) from None


def _audit_scope(workspace: Workspace, round_number: int | None) -> AuditScope:
    rounds = load_snapshots(workspace)
    last = max(rounds) if round_number is None else round_number
    return AuditScope(
        workspace=workspace,
        rounds={number: rounds[number] for number in sorted(rounds) if number <= last},
        is_complete=last == max(rounds),
        is_deriving=newest_round(workspace) > max(rounds),
    )
