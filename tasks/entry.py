"""How a stage starts: ``python -m tasks.<stage>`` from a workspace's root."""

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks import files
from tasks.errors import UserError
from tasks.paths import Workspace

_PR_SET_PDEATHSIG = 1


def run_stage(stage: str, body: Callable[[Workspace], None]) -> None:
    """Run one stage in the current folder; a user's mistake ends in one line, not in a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    die_with_parent()
    workspace = Workspace(Path.cwd())
    started_s = time.monotonic()
    try:
        body(workspace)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    files.write_json(workspace.timing(stage), {"stage": stage, "seconds": round(time.monotonic() - started_s, 3)})


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, so that a killed night leaves no orphan."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died between the two calls
            os.kill(os.getpid(), signal.SIGTERM)
