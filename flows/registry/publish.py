"""Publish a derived round: MLflow run, ledger, promotion, git commit and tag, then push.

A repeated call completes what an earlier one began. The tag is set last: a round with a tag is published completely.
"""

from dataclasses import dataclass

from flows.provenance.audit.records import LEDGER_TRAILER
from flows.provenance.ledger_writer import write_ledger
from flows.registry.promotion import evaluate_candidate, sync_alias
from flows.tracking import mlflow_run
from flows.workspace import dvc, git
from flows.workspace.promotion_log import Decision, last_decision
from flows.workspace.rounds import ledger_sha256, lost_tag_hint, read_ledger
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import pluralize


class PublishError(UserError):
    """A service needed to publish a round failed."""

    exit_code = 1


@dataclass(frozen=True)
class PublishResult:
    """A published round."""

    round_number: int
    message: str
    decision: Decision | None
    """The newest decision about its model."""


def publish(workspace: Workspace, params: Params, round_number: int) -> PublishResult:
    """Publish a derived round, or complete its publication; a published round is not changed.

    Raises:
        UserError: a file of the round is missing, or git fails.
    """
    tag = git.round_tag(round_number)
    _require_own_tag(workspace, tag)
    if not git.has_tag(workspace.root, tag):
        revision = git.commit(workspace, f"Derive round {round_number}", git.DERIVED_PATHS)
        with mlflow_run.mlflow_run(workspace, params, round_number, revision) as run:
            write_ledger(workspace, params, round_number, revision, run.mlflow_ref)
            run.record_ledger(workspace.ledger(round_number))
            evaluate_candidate(workspace, params, round_number)
            sync_alias(workspace, run.client)
        git.commit(workspace, f"Round {round_number}: {_metrics_text(workspace, round_number)}")
        git.set_tag(workspace.root, tag, _tag_message(workspace, round_number))
    decision = last_decision(workspace, round_number)
    message = f"Round {round_number} is finished: {_metrics_text(workspace, round_number)}. {_decision_text(decision)}"
    return PublishResult(round_number, message.strip(), decision)


def _require_own_tag(workspace: Workspace, tag: str) -> None:
    """Refuse a round whose number another branch has: its tag would make this one count as published."""
    if git.has_tag(workspace.root, tag) and not git.is_ancestor(workspace.root, tag, "HEAD"):
        problem = f"the tag {tag} is not in the history of this branch, expected this branch's round, or none"
        raise UserError(workspace.root, problem, lost_tag_hint(tag))


def push(workspace: Workspace) -> bool:
    """Push the data of all rounds to the default DVC remote; return whether there is one."""
    if not dvc.has_default_remote(workspace.root):
        return False
    dvc.run_dvc(workspace.root, "push", "--all-tags")
    return True


def _metrics_text(workspace: Workspace, round_number: int) -> str:
    metrics = read_ledger(workspace, round_number)["metrics"]
    counts = f"{pluralize(metrics['labels'], 'label')}, {pluralize(metrics['boxes'], 'box', 'boxes')}"
    return f"{counts}, teacher mAP {metrics['teacher']['mAP']:.1f}"


def _tag_message(workspace: Workspace, round_number: int) -> str:
    """Message with the ledger's digest, so that a signature of the tag covers the ledger and all earlier ones."""
    return f"{_metrics_text(workspace, round_number)}\n\n{LEDGER_TRAILER}{ledger_sha256(workspace, round_number)}"


def _decision_text(decision: Decision | None) -> str:
    if decision is None:
        return ""
    version = decision.model.version
    if decision.action == "refuse":
        return f"Version {version} does not become champion: {decision.reason}."
    return f"Version {version} is champion: {decision.reason}."
