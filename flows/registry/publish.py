"""A derived round becomes a finished one: MLflow, ledger, promotion, git commit, tag, push.

Each step finds what an earlier call left and adds only what is missing; the tag comes last and says that all
of it is there.
"""

from dataclasses import dataclass

from flows.provenance.audit.ledger_chain import LEDGER_TRAILER
from flows.provenance.ledger_writer import write_ledger
from flows.registry.promotion import evaluate_candidate, sync_alias
from flows.tracking import mlflow_run
from flows.workspace import dvc, git
from flows.workspace.ledger import read_ledger
from flows.workspace.promotion_log import Decision, last_decision
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.runtime.errors import UserError
from tasks.storage import files


class PublishError(UserError):
    """A service that records rounds does not do its part."""

    exit_code = 1


@dataclass(frozen=True)
class PublishResult:
    """A finished round in one sentence."""

    round_number: int
    message: str
    decision: Decision | None
    """What the gate decided about its model; None for a round of a Gleaner that kept no promotion log."""


def publish(workspace: Workspace, params: Params, round_number: int) -> PublishResult:
    """Record a derived round everywhere.

    Raises:
        UserError: a file of the round is missing, or git refuses.
    """
    tag = git.round_tag(round_number)
    if not git.has_tag(workspace.root, tag):
        revision = git.commit(workspace, f"Derive round {round_number}", git.DERIVED_PATHS)
        with mlflow_run.mlflow_run(workspace, params, round_number, revision) as run:
            write_ledger(workspace, round_number, revision, run.mlflow_ref)
            run.record_ledger(workspace.ledger(round_number))
            evaluate_candidate(workspace, params, round_number)
            sync_alias(workspace, run.client)
        git.commit(workspace, f"Round {round_number}: {_metrics_text(workspace, round_number)}")
        git.set_tag(workspace.root, tag, _tag_message(workspace, round_number))
    decision = last_decision(workspace, round_number)
    message = f"Round {round_number} is finished: {_metrics_text(workspace, round_number)}. {_decision_text(decision)}"
    return PublishResult(round_number, message.strip(), decision)


def push(workspace: Workspace) -> bool:
    """Send what every round needs to the default remote, if there is one; only what it lacks is sent."""
    if not dvc.has_default_remote(workspace.root):
        return False
    dvc.run_dvc(workspace.root, "push", "--all-tags")
    return True


def _metrics_text(workspace: Workspace, round_number: int) -> str:
    metrics = read_ledger(workspace, round_number)["metrics"]
    return f"{metrics['labels']} labels, {metrics['boxes']} boxes, teacher mAP {metrics['teacher']['mAP']:.1f}"


def _tag_message(workspace: Workspace, round_number: int) -> str:
    """Whoever signs the tag signs the ledger, and with it all rounds before."""
    digest = files.sha256_file(workspace.ledger(round_number))
    return f"{_metrics_text(workspace, round_number)}\n\n{LEDGER_TRAILER}{digest}"


def _decision_text(decision: Decision | None) -> str:
    if decision is None:
        return ""
    version = decision.model.version
    if decision.action == "refuse":
        return f"Version {version} does not become champion: {decision.reason}."
    return f"Version {version} is champion: {decision.reason}."
