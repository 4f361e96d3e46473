"""Promote models to champion and roll back: by the gate in every round, or by a person.

A decision is appended to the promotion log first, then the alias in MLflow is set. Every function may be killed
anywhere and called again: a decision has an idempotency key, and the alias is set from the last line of the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flows.provenance.audit.run import quick_findings
from flows.provenance.snapshot import RoundSnapshot, load_snapshots
from flows.registry.gate import GateResult, evaluate_gate
from flows.tracking.mlflow_run import CHAMPION, TEACHER_SHA256, version_by_alias
from flows.workspace import git
from flows.workspace.promotion_log import (
    Action,
    Decision,
    ModelRecord,
    append_decision,
    current_champion,
    model_record,
    promotions,
    read_decisions,
)
from flows.workspace.rounds import all_ledgers
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.runtime.errors import UserError
from tasks.storage import files

AUTHOR_NIGHTLY = "gleaner run"
_LOG_PATHS = ("promotions.jsonl",)


class PromotionRefusedError(UserError):
    """The gate refused a model that a person asked to promote."""

    exit_code = 1


@dataclass(frozen=True)
class PromotionResult:
    """The outcome of a request to promote or roll back."""

    changed: bool
    """Whether a decision was appended to the log."""
    message: str


def evaluate_candidate(workspace: Workspace, params: Params, round_number: int) -> Decision:
    """Evaluate the gate for the round's model and log the decision; a repeated call returns the logged one."""
    rounds = load_snapshots(workspace)
    candidate = rounds[round_number]
    key = files.sha256_json(["run", candidate.ledger["derivation_sha256"], candidate.ledger["mlflow"]])
    existing = next((decision for decision in read_decisions(workspace) if decision.key == key), None)
    if existing is not None:
        return existing
    champion = current_champion(workspace)
    result = _run_gate(workspace, rounds, candidate, champion, params)
    return append_decision(
        workspace,
        key,
        "promote" if result.passed else "refuse",
        author=AUTHOR_NIGHTLY,
        previous_champion=champion,
        model=model_record(candidate.ledger),
        reason=result.reason,
        gate=_gate_document(result),
    )


def promote(
    workspace: Workspace, client: MlflowClient, params: Params, version: int, reason: str, *, force: bool
) -> PromotionResult:
    """Promote a model version at a person's request, if it passes the gate.

    Args:
        workspace: the campaign.
        client: of its MLflow.
        params: see ``evaluate_gate``.
        version: the model version.
        reason: logged with the decision.
        force: promote even if the gate refuses; its reason is logged.

    Raises:
        PromotionRefusedError: the gate refuses, and ``force`` is not given.
        UserError: there is no such version.
    """
    rounds = load_snapshots(workspace)
    target = _round_of_version(rounds, version)
    champion = current_champion(workspace)
    if champion is not None and champion.version == version:
        return _apply(workspace, client, False, f"Version {version} is champion already.")
    result = _run_gate(workspace, rounds, target, champion, params)
    action: Action = "promote" if result.passed or force else "refuse"
    append_decision(
        workspace,
        _idempotency_key(workspace, action, version, reason),
        action,
        author=git.committer(workspace.root),
        previous_champion=champion,
        model=model_record(target.ledger),
        reason=reason if action == "promote" else f"{result.reason} (requested because: {reason})",
        gate=_gate_document(result),
    )
    if action == "promote":
        return _apply(workspace, client, True, f"Version {version} is champion: {reason}.")
    git.commit(workspace, f"Promotion refused: version {version}", _LOG_PATHS)
    fix = "The decision is in promotions.jsonl. To promote the version nevertheless: --force"
    raise PromotionRefusedError(f"version {version}", f"the gate refuses it ({result.reason})", fix)


def rollback(workspace: Workspace, client: MlflowClient, to: int | None, reason: str) -> PromotionResult:
    """Make a former champion the champion again.

    A repeated call changes nothing; to go back further, the version has to be given.

    Args:
        workspace: the campaign.
        client: of its MLflow.
        to: version of a former champion; None: the one before the last promotion.
        reason: logged with the decision.

    Raises:
        UserError: there was no champion before, or the version never was champion.
    """
    promoted = promotions(workspace)
    champion = current_champion(workspace)
    if to is None and promoted and promoted[-1].action == "rollback":
        message = (
            f"Rolled back already: version {promoted[-1].model.version} is champion. To go back further: --to VERSION."
        )
        return _apply(workspace, client, False, message)
    previous_champion = _previous_champion(workspace, promoted, champion, to)
    if champion is not None and champion.version == previous_champion.version:
        return _apply(workspace, client, False, f"Version {previous_champion.version} is champion already.")
    append_decision(
        workspace,
        _idempotency_key(workspace, "rollback", previous_champion.version, reason),
        "rollback",
        author=git.committer(workspace.root),
        previous_champion=champion,
        model=previous_champion,
        reason=reason,
        gate=None,
    )
    return _apply(workspace, client, True, f"Version {previous_champion.version} is champion again: {reason}.")


def sync_alias(workspace: Workspace, client: MlflowClient) -> str | None:
    """Set the champion alias in MLflow from the log; return a warning where MLflow lacks that model version."""
    promoted = promotions(workspace)
    if not promoted:
        return None
    name = _model_name(workspace)
    champion = promoted[-1].model
    try:
        version = client.get_model_version(name, str(champion.version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return f"MLflow has no version {champion.version} of {name}, which is the champion in promotions.jsonl."
    teacher_sha256 = version.tags.get(TEACHER_SHA256)
    if teacher_sha256 not in (None, champion.sha256):
        expected = f"expected {champion.sha256} of promotions.jsonl"
        return f"MLflow version {champion.version} of {name}: {TEACHER_SHA256} is {teacher_sha256}, {expected}."
    current = version_by_alias(client, name, CHAMPION)
    if current is None or int(current.version) != champion.version:
        client.set_registered_model_alias(name, CHAMPION, str(champion.version))
    return None


def _run_gate(
    workspace: Workspace,
    rounds: Mapping[int, RoundSnapshot],
    candidate: RoundSnapshot,
    champion: ModelRecord | None,
    params: Params,
) -> GateResult:
    findings = quick_findings(workspace, candidate, rounds)
    if findings:
        return GateResult(False, f"the record is altered or incomplete: {findings[0]}", {"findings": findings})
    baseline = _baseline(workspace, champion, candidate.number)
    if baseline is not None and baseline.round not in rounds:
        return GateResult(False, f"the ledger of the champion's round {baseline.round} is missing", {})
    return evaluate_gate(candidate, None if baseline is None else rounds[baseline.round], params)


def _baseline(workspace: Workspace, champion: ModelRecord | None, round_number: int) -> ModelRecord | None:
    """The model to compare with: the champion, or its predecessor where it is an earlier derivation of this round.

    The ledger of that earlier derivation has been replaced.
    """
    if champion is None or champion.round != round_number:
        return champion
    others = [decision.model for decision in promotions(workspace) if decision.model.round != round_number]
    return others[-1] if others else None


def _apply(workspace: Workspace, client: MlflowClient, changed: bool, message: str) -> PromotionResult:
    """Commit the log and set the alias; also completes a call that was killed."""
    git.commit(workspace, f"Promotion: {message.split(':')[0].rstrip('.')}", _LOG_PATHS)
    warning = sync_alias(workspace, client)
    return PromotionResult(changed, f"{message} {warning}" if warning else message)


def _previous_champion(
    workspace: Workspace, promoted: list[Decision], champion: ModelRecord | None, to: int | None
) -> ModelRecord:
    former_champions = [decision.model for decision in promoted] + [
        decision.previous_champion for decision in promoted if decision.previous_champion
    ]
    if to is not None:
        previous = next((model for model in reversed(former_champions) if model.version == to), None)
        known = sorted({model.version for model in former_champions})
        if previous is None:
            raise UserError("--to", f"the version is {to}, expected one that was champion: {known}")
        return previous
    if not promoted or promoted[-1].previous_champion is None:
        fact = f"version {champion.version} is the first champion" if champion else "there is no champion"
        raise UserError(workspace.promotions, f"{fact}, so there is none to go back to")
    return promoted[-1].previous_champion


def _round_of_version(rounds: Mapping[int, RoundSnapshot], version: int) -> RoundSnapshot:
    found = [snapshot for snapshot in rounds.values() if snapshot.model_version == version]
    if not found:
        known = sorted(snapshot.model_version for snapshot in rounds.values())
        raise UserError("VERSION", f"the version is {version}, expected one of this campaign: {known}")
    return found[-1]


def _idempotency_key(workspace: Workspace, action: str, version: int, reason: str) -> str:
    """Key of a request: repeated as the next request it has the same key, after another decision a new one."""
    log = read_decisions(workspace)
    request = [action, version, reason]
    if log and log[-1].key == files.sha256_json([*request, len(log) - 1]):
        return log[-1].key
    return files.sha256_json([*request, len(log)])


def _model_name(workspace: Workspace) -> str:
    return str(all_ledgers(workspace)[-1]["mlflow"]["model_name"])


def _gate_document(result: GateResult) -> dict[str, object]:
    return {"passed": result.passed, "reason": result.reason, **result.metrics}
