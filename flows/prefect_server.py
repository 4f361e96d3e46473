"""Find or start Prefect's API for one command: the user's server, or a private one that ends with this process.

Prefect can start a temporary server itself, but it is orphaned when the command is killed with SIGKILL, gets
Ctrl-C before the flow that still needs it, and takes a random port between 8000 and 8999, where other
services listen. The private server has its own session and a port that is free, and ends with its parent.
"""

import atexit
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.runtime.process_env import has_prefect_server, prepare_environment
from flows.runtime.subprocess import set_pdeathsig
from tasks.runtime.errors import UserError
from tasks.runtime.imports import import_without_gc

_STOP_GRACE_S = 5.0


def ensure_prefect_api(root: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Make ``PREFECT_API_URL`` name a running server; call before prefect is imported.

    Args:
        root: of the campaign, for the log of a private server.
        meanwhile: called once, with the address set, while a private server starts; may import prefect.

    Raises:
        UserError: the private server does not start; names its log.
    """
    prepare_environment(root)
    if has_prefect_server():
        meanwhile()
        return
    log = root / ".gleaner" / "logs" / "prefect-server.log"
    with _startup_lock(Path(os.environ["PREFECT_HOME"]).expanduser()):
        server, port = _start(log)
        atexit.register(_stop, server)  # not sooner: while the interpreter ends, Prefect still sends its last logs
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        meanwhile()
        _wait_until_ready(server, port, log)


@contextmanager
def _startup_lock(home: Path) -> Iterator[None]:
    """Let one server start at a time: of two that create the same database at once, one fails."""
    try:
        with FileLock(home / "server-starts.lock", timeout=_start_timeout_s()):
            yield
    except Timeout as error:
        raise UserError(
            error.lock_file,
            f"held for {_start_timeout_s():.0f} s, expected free",
            "Another server starts there; try again.",
        ) from None


def _start_timeout_s() -> float:
    return float(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])


def _start(log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server on a socket that listens already, so that no other process can take the port in between."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listening, log.open("wb") as output:
        command = [sys.executable, "-m", "uvicorn", "--factory", f"{__name__}:{create_private_app.__name__}"]
        server = subprocess.Popen(
            [*command, "--fd", str(listening.fileno()), "--log-level", "error", "--lifespan", "on"],
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[listening.fileno()],
            start_new_session=True,
            preexec_fn=set_pdeathsig(signal.SIGKILL),  # its database is transactional
            env={
                **os.environ,
                "PREFECT__SERVER_EPHEMERAL": "1",
                "PREFECT__SERVER_FINAL": "1",
                "PREFECT_UI_ENABLED": "0",
                # No flow uses a block; to look for them, the server would import every installed collection.
                "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
                "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
            },
        )
        return server, listening.getsockname()[1]


def create_private_app() -> Any:
    """Create the app of the private server, in its process."""
    app = import_without_gc("prefect.server.api.server").create_app()
    gc.freeze()
    return app


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + _start_timeout_s()
    while time.monotonic() < deadline_s and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=deadline_s - time.monotonic()):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    _stop(server)
    raise UserError(
        log, f"Prefect's server ended with code {server.returncode}, expected it to start", "Read that log."
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
