"""Command ``gleaner adopt``: go on with a campaign in a folder that was moved, copied, cloned or restored."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.cli.options import WorkspaceOption
from flows.runtime.masking import SafeConsole
from flows.runtime.process_env import prepare_environment
from tasks.runtime.errors import UserError


def adopt(
    reason: Annotated[str, typer.Option(help="Why; kept in owners.jsonl.")],
    workspace: WorkspaceOption = Path(),
) -> None:
    """Go on with a campaign in this folder, and no longer in the one it was copied, cloned or restored from.

    The other folder stops at its next run. After a move, MLflow's records of artifacts get the new place.
    """
    from flows.workspace.run_lock import require_workspace

    if not reason.strip():
        raise UserError("--reason", "the text is empty", "Give a reason for owners.jsonl.")
    campaign = require_workspace(workspace)
    prepare_environment(campaign.root)
    from flows.registry.adopt import adopt as adopt_folder
    from flows.runtime.retries import translate_service_errors
    from flows.workspace import git
    from flows.workspace.run_lock import run_lock
    from flows.workspace.trust import trust
    from tasks.params import load_params

    trust(campaign.root)
    with run_lock(campaign), translate_service_errors("MLflow"):
        git.require_branch(campaign.root)
        adoption = adopt_folder(campaign, load_params(campaign.params), reason.strip())
    console = SafeConsole()
    for change in adoption.changes or ("The folder is the campaign's own already.",):
        console.print(escape(change), soft_wrap=True, highlight=False)
