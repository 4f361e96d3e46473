"""Run a probe in a separate process, which can be stopped and cannot affect the caller."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.runtime.process_env import redact
from flows.runtime.subprocess import ProcessTimeout, run_captured
from flows.workspace.dvc import dvc_env
from tasks.runtime.errors import UserError


def run_probe(
    module: str, arguments: Sequence[str], *, cwd: Path, limit_s: float, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run ``python -m <module>`` and return the JSON object on its last line.

    Args:
        module: has a ``main`` that prints one JSON object.
        arguments: of the command line.
        cwd: folder to run in.
        limit_s: it is killed after this.
        env: changes to the environment.

    Raises:
        UserError: it ended badly or took too long; carries its last line, without secrets.
    """
    command = [sys.executable, "-m", module, *arguments]
    probe_env = {**dvc_env(), "PYTHONWARNINGS": "ignore", **(env or {})}
    try:
        process = run_captured(command, cwd=cwd, env=probe_env, limit_s=limit_s)
    except ProcessTimeout:
        raise UserError(module, f"the answer took more than {limit_s:g} s, expected it sooner") from None
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    if process.returncode:
        last_line = redact(lines[-1].strip()) if lines else f"it ended with code {process.returncode}"
        raise UserError(module, f"{last_line.rstrip('.')}")
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result
