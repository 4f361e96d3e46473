"""A derived round becomes a finished one: MLflow, ledger, git commit, tag, push.

Each step finds what an earlier call left and adds only what is missing; the tag comes last and says that all
of it is there.
"""

from dataclasses import dataclass

from flows import data_versions, tracking, vcs
from flows.ledger import read_ledger, write_ledger
from tasks.errors import UserError
from tasks.params import Params
from tasks.paths import Workspace


class PublishError(UserError):
    """A service that records rounds does not do its part."""

    exit_code = 1


@dataclass(frozen=True)
class Published:
    """A finished round in one sentence."""

    round_number: int
    message: str


def publish(workspace: Workspace, params: Params, round_number: int) -> Published:
    """Record a derived round everywhere.

    Raises:
        UserError: a file of the round is missing, or git refuses.
    """
    tag = vcs.round_tag(round_number)
    if not vcs.has_tag(workspace.root, tag):
        revision = vcs.commit(workspace, f"Derive round {round_number}", vcs.DERIVED)
        with tracking.tracked_round(workspace, params, round_number, revision) as run:
            write_ledger(workspace, round_number, revision, run.tracked)
            run.log_ledger(workspace.ledger(round_number))
        vcs.commit(workspace, f"Round {round_number}: {_figures(workspace, round_number)}")
        vcs.set_tag(workspace.root, tag, _figures(workspace, round_number))
    return Published(round_number, f"Round {round_number} is finished: {_figures(workspace, round_number)}.")


def push(workspace: Workspace) -> bool:
    """Send what every round needs to the default remote, if there is one; only what it lacks is sent."""
    if not data_versions.has_default_remote(workspace.root):
        return False
    data_versions.dvc(workspace.root, "push", "--quiet", "--all-tags")
    return True


def _figures(workspace: Workspace, round_number: int) -> str:
    figures = read_ledger(workspace, round_number)["figures"]
    return f"{figures['labels']} labels, {figures['boxes']} boxes, teacher mAP {figures['teacher']['mAP']:.1f}"
