"""Run ``gleaner`` in processes that need not import the libraries each: ``python -m tests.flows.preloaded_cli SOCKET``.

A server that has imported them forks each command. The command has its own arguments, folder, environment and pipes,
imports Gleaner's command line and Prefect, which look at them then, and ends as every interpreter does.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

_PRELOADED = ("typer", "rich.progress", "rich.table", "rich.logging", "pandas", "mlflow", "flows.registry.publish")
"""None of them imports ``flows.cli`` or ``prefect``."""
_MAX_REQUEST_BYTES = 1 << 18


class _Output(threading.Thread):
    """Read a pipe to its end, as every process that has it open closes it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._reader, self.writer = os.pipe()
        self.text = ""

    def run(self) -> None:
        with open(self._reader, encoding="utf-8", errors="replace") as stream:
            self.text = stream.read()


def run_preloaded(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run one command and wait for it."""
    outputs = [_Output(), _Output(), _Output()]
    for output in outputs:
        output.start()
    request = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": dict(env)}).encode()
    assert len(request) < _MAX_REQUEST_BYTES
    socket.send_fds(_server(), [request], [output.writer for output in outputs])
    for output in outputs:
        os.close(output.writer)
    for output in outputs:
        output.join(timeout_s)
    stdout, stderr, status = (output.text for output in outputs)
    if any(output.is_alive() for output in outputs):
        raise subprocess.TimeoutExpired([*arguments], timeout_s)
    return subprocess.CompletedProcess(["gleaner", *arguments], int(status), stdout, stderr)


@lru_cache(maxsize=1)
def _server() -> socket.socket:
    from tests.flows.small_campaign import REPOSITORY, subprocess_env

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.flows.preloaded_cli", str(theirs.fileno())],
            cwd=REPOSITORY,
            env=subprocess_env(),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request, and return it in the process that is to be the command."""
    while True:
        content, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 3)
        if not content:
            os._exit(0)
        if os.fork() == 0:  # a parent for the command, which waits for it
            requests.close()
            if (command := os.fork()) == 0:
                for number, descriptor in enumerate(descriptors[:2], start=1):
                    os.dup2(descriptor, number)
                for descriptor in descriptors:
                    os.close(descriptor)
                request: dict[str, Any] = json.loads(content)
                return request
            for descriptor in descriptors[:2]:
                os.close(descriptor)
            _, status = os.waitpid(command, 0)
            os.write(descriptors[2], str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        with suppress(ChildProcessError):
            while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
                pass  # parents of commands that have ended


def _become(request: dict[str, Any]) -> None:
    """Be the command as ``python -m flows.cli`` in its folder would."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, request["cwd"])
    sys.argv = ["gleaner", *request["arguments"]]


if __name__ == "__main__":
    gc.disable()
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
    runpy.run_module("flows.cli", run_name="__main__", alter_sys=True)
