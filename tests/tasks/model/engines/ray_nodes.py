"""Nodes of a Ray cluster on loopback, each a process group that a test can end by itself."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[4]
_START_TIMEOUT_S = 180


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


class RayNodes:
    """A head and its nodes; every process has the same token."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, num_cpus: int = 1, head: bool = False) -> subprocess.Popen[bytes]:
        """Start a node and return once it takes part."""
        where = ["--head", f"--port={self.address.rpartition(':')[2]}"] if head else [f"--address={self.address}"]
        log = self._folder / f"node-{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--node-ip-address=127.0.0.1"),
                    *(f"--num-cpus={num_cpus}", "--num-gpus=0", "--object-store-memory=100000000", "--block"),
                    *(("--include-dashboard=false",) if head else ()),
                ],
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.2)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a node at once, with all its workers."""
        for pid in [*descendants(process.pid), process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()

    def stop(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                self.kill(process)


def descendants(pid: int) -> list[int]:
    """Processes below ``pid``, the deepest last."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@contextmanager
def ray_nodes(folder: Path) -> Iterator[RayNodes]:
    nodes = RayNodes(folder)
    try:
        yield nodes
    finally:
        nodes.stop()
