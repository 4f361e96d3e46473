"""``gleaner promote`` and ``gleaner rollback``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows.cli.options import WorkspaceOption
from flows.runtime.process_env import prepare_environment, tracking_uri
from tasks.runtime.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from flows.registry.promotion import PromotionResult
    from tasks.data.paths import Workspace

_Reason = Annotated[str, typer.Option(help="Why; it stands in the promotion log for ever.")]


def promote(
    version: Annotated[
        int, typer.Argument(metavar="VERSION", help="Of the model in MLflow, as gleaner status names it.")
    ],
    reason: _Reason,
    force: Annotated[bool, typer.Option("--force", help="Even if the gate objects; its objection is logged.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Make a model version champion, if the gate does not find it worse than the reigning one.

    Nights promote by themselves; this is for a version they left out.
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
            "--to", metavar="VERSION", help="A former champion.", show_default="the one before the last promotion"
        ),
    ] = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Give the title back to a former champion.

    A second call changes nothing; further back goes only who names the version.
    """
    from flows.registry.promotion import rollback as decide

    _apply_decision(workspace, reason, lambda campaign, client: decide(campaign, client, to, reason.strip()))


def _apply_decision(folder: Path, reason: str, decide: "Callable[[Workspace, MlflowClient], PromotionResult]") -> None:
    from flows.workspace.run_lock import require_workspace

    if not reason.strip():
        raise UserError("--reason", "the text is empty, expected why", "Whoever reads the log will want to know.")
    workspace = require_workspace(folder)
    prepare_environment(workspace.root)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from flows.registry.publish import PublishError
    from flows.tracking.mlflow_run import silence_mlflow
    from flows.workspace import git
    from flows.workspace.run_lock import run_lock

    silence_mlflow()
    with run_lock(workspace):
        git.require_branch(workspace.root)
        try:
            outcome = decide(workspace, MlflowClient(tracking_uri(workspace.root)))
        except MlflowException as error:
            message = str(error).splitlines()[0]
            fix = "The decision is written down: the same command, or the next round, tells MLflow."
            raise PublishError("MLflow", f"the answer is an error ({message}), expected none", fix) from error
    Console().print(escape(outcome.message), soft_wrap=True, highlight=False)
