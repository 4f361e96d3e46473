"""Run a module of ``tasks`` that is no stage, in a process of its own: ``flows`` hold no tensors."""

import sys
from collections.abc import Callable, Sequence

from flows.runtime.subprocess import run_streaming
from flows.workspace.dvc import dvc_env
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError


def run_module(workspace: Workspace, module: str, arguments: Sequence[str], on_line: Callable[[str], None]) -> None:
    """Run ``python -m module`` in the campaign, as DVC runs a stage.

    Raises:
        UserError: it failed; carries its last line.
    """
    lines: list[str] = []

    def handle_line(line: str) -> None:
        lines.append(line)
        on_line(line)

    command = [sys.executable, "-m", module, *arguments]
    code = run_streaming(command, cwd=workspace.root, env=dvc_env(), on_line=handle_line)
    if code:
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        raise UserError(module, f"it ended with code {code} ({last}), expected 0")
