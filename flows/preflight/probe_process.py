"""Run a probe in a separate process, which can be stopped and cannot affect the caller."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Any

from flows.monitoring.redaction import redact
from flows.runtime.subprocess import set_pdeathsig
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
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env={**dvc_env(), "PYTHONWARNINGS": "ignore", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=set_pdeathsig(SIGKILL),
    )
    try:
        stdout, stderr = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, SIGKILL)
        process.communicate()
        raise UserError(module, f"the answer took more than {limit_s:g} s, expected it sooner") from None
    lines = [line for line in stderr.splitlines() if line.strip()]
    if process.returncode:
        last_line = redact(lines[-1].strip()) if lines else f"it ended with code {process.returncode}"
        raise UserError(module, f"{last_line.rstrip('.')}")
    result: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return result
