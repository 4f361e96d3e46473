"""A probe in a process of its own: what hangs is stopped, what it prints or breaks stays with it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Any

from flows.data_versions import child_environment
from flows.safety.process import end_with_parent
from flows.watching.secrets import without_secrets
from tasks.errors import UserError


def probe(
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
        env={**child_environment(), "PYTHONWARNINGS": "ignore", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=end_with_parent(SIGKILL),
    )
    try:
        output, said = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, SIGKILL)
        process.communicate()
        raise UserError(module, f"the answer took more than {limit_s:g} s, expected it sooner") from None
    lines = [line for line in said.splitlines() if line.strip()]
    if process.returncode:
        last = without_secrets(lines[-1].strip()) if lines else f"it ended with code {process.returncode}"
        raise UserError(module, f"{last.rstrip('.')}")
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer
