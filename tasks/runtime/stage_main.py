"""Start a stage: ``python -m tasks <stage>`` from a workspace's root."""

import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path

from tasks.data.paths import Workspace
from tasks.runtime.resource_errors import as_user_error
from tasks.storage import files

MICRO_BATCHES_ENV = "GLEANER_MICRO_BATCHES"
_PR_SET_PDEATHSIG = 1


def stage_main(stage: str, body: Callable[[Workspace], None]) -> None:
    """Run one stage in the current folder.

    A user's mistake, and a machine without memory or disk space, end in one line and an exit code of their own.
    """
    gc.freeze()  # the libraries' objects live to the end: to look through them again takes 1.5 s at the exit alone
    skip_pandas_import()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    set_pdeathsig()
    workspace = Workspace(Path.cwd())
    started_s = time.monotonic()
    try:
        body(workspace)
        seconds = round(time.monotonic() - started_s, 3)
        files.write_json(workspace.timing(stage), {"stage": stage, "seconds": seconds, "device": _device()})
    except Exception as error:
        user_error = as_user_error(stage, error)
        if user_error is None:
            raise
        sys.stderr.write(f"{user_error}\n")
        sys.exit(user_error.exit_code)


def skip_pandas_import() -> None:
    """Make pyarrow do without pandas in a stage that has not imported it.

    Before its first array pyarrow imports pandas, half a second of a core, to recognize its objects. ``to_pandas`` of a
    table still works: it tries the import again.
    """
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is None or "pandas" in sys.modules:
        return
    hidden = _HiddenPandas()
    sys.meta_path.insert(0, hidden)
    try:
        pyarrow.array([])
    finally:
        sys.meta_path.remove(hidden)


class _HiddenPandas(MetaPathFinder):
    """A finder by which an import of pandas fails."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Refuse pandas, and leave the others to the other finders."""
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def num_micro_batches() -> int:
    """Return the divisor of a stage's batch size: more than 1 after it has run out of memory.

    It comes by the environment, not by params.yaml: the parameters of the round, and what they mean, stay the same.
    """
    return int(os.environ.get(MICRO_BATCHES_ENV, "1"))


def _device() -> str | None:
    """Return the device of the stage's tensors: name of the GPU, or the CPU; None for a stage without tensors."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else "cpu"


def set_pdeathsig() -> None:
    """Ask Linux to end this process when its parent dies, so that a killed round leaves no orphan."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died between the two calls
            os.kill(os.getpid(), signal.SIGTERM)
