"""Commands ``gleaner promote`` and ``gleaner rollback``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from flows.cli.options import WorkspaceOption
from flows.runtime.masking import SafeConsole
from flows.runtime.process_env import prepare_environment, tracking_uri
from tasks.runtime.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from flows.registry.promotion import PromotionResult
    from tasks.data.paths import Workspace

_Reason = Annotated[str, typer.Option(help="Why; kept in the promotion log.")]


def promote(
    version: Annotated[
        int, typer.Argument(metavar="VERSION", help="Version of the model in MLflow, as shown by gleaner status.")
    ],
    reason: _Reason,
    force: Annotated[
        bool, typer.Option("--force", help="Promote even if the gate refuses; its reason is logged.")
    ] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Promote a model version to champion, if it passes the gate.

    Every round promotes its own model; this is for a version that was not promoted.
    """
    from flows.registry.promotion import promote as decide
    from tasks.params import load_params

    _apply_decision(
        workspace,
        reason,
        lambda campaign, client: decide(
            campaign, client, load_params(campaign.params), version, reason.strip(), force=force
        ),
    )


def rollback(
    reason: _Reason,
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            metavar="VERSION",
            help="Version of a former champion.",
            show_default="the one before the last promotion",
        ),
    ] = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Make a former champion the champion again.

    A second call changes nothing; to go back further, give --to.
    """
    from flows.registry.promotion import rollback as decide

    _apply_decision(workspace, reason, lambda campaign, client: decide(campaign, client, to, reason.strip()))


def _apply_decision(folder: Path, reason: str, decide: "Callable[[Workspace, MlflowClient], PromotionResult]") -> None:
    from flows.workspace.run_lock import require_workspace

    if not reason.strip():
        raise UserError("--reason", "the text is empty", "Give a reason for the promotion log.")
    workspace = require_workspace(folder)
    prepare_environment(workspace.root)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from flows.registry.publish import PublishError
    from flows.tracking.mlflow_owner import require_tracked_owner
    from flows.tracking.mlflow_run import silence_mlflow
    from flows.workspace import git
    from flows.workspace.owner import require_own_folder
    from flows.workspace.run_lock import run_lock
    from flows.workspace.trust import trust

    silence_mlflow()
    trust(workspace.root)
    with run_lock(workspace):
        git.require_branch(workspace.root)
        owner, client = require_own_folder(workspace), MlflowClient(tracking_uri(workspace.root))
        try:
            require_tracked_owner(workspace, client, owner)
            outcome = decide(workspace, client)
        except MlflowException as error:
            message = str(error).splitlines()[0]
            fix = "The decision is logged: run the same command again, or the next round sets the alias."
            raise PublishError("MLflow", f"the answer is an error ({message})", fix) from error
    SafeConsole().print(escape(outcome.message), soft_wrap=True, highlight=False)
