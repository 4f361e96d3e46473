"""Join a team's Ray cluster, or start one on this machine, with the token that every node must know.

Ray gives whoever reaches its ports the right to run code. So token authentication is on unless the environment says
otherwise, and a cluster on this machine gets a token of its own. Tokens are not encrypted: a cluster of several
machines belongs in a private network.
"""

import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.runtime.errors import EXIT_UNREACHABLE, UserError

AUTH_MODE_ENV = "RAY_AUTH_MODE"
TOKEN_ENV = "RAY_AUTH_TOKEN"
TOKEN_PATH_ENV = "RAY_AUTH_TOKEN_PATH"
LOCAL = "local"
_CONNECT_TIMEOUT_S = 10.0
_OBJECT_STORE_BYTES = 128 * 2**20
"""Of a cluster on this machine: only names of pieces and digests pass through it."""


class ClusterUnreachableError(UserError):
    """The cluster does not answer, or refuses the token. The same call may work in a while."""

    exit_code = EXIT_UNREACHABLE
    transient = True


@dataclass(frozen=True)
class Node:
    """A node that is alive, and its logical resources."""

    node_id: str
    address: str
    num_cpus: float
    num_gpus: float


def import_ray() -> Any:
    """Return the module ``ray``, set up to send nothing home.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's next default
    try:
        import ray
    except ImportError:
        raise UserError(
            "params.yaml",
            "infer.engine is 'ray' without the package ray, expected gleaner[ray]",
            "Install it (pip install 'gleaner[ray]'), or set infer.engine to local.",
        ) from None
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield the module ``ray``, connected; at the end leave the cluster, or stop it where it was started here.

    Args:
        address: ``local``: a cluster of this machine alone; ``auto``: the one whose node runs on this machine; else
            HOST:PORT of a head node, of which a node runs on this machine.

    Raises:
        UserError: ray is missing, no token is set, or no cluster is found.
        ClusterUnreachableError: the cluster does not answer, or refuses the token.
    """
    own_token = address == LOCAL and TOKEN_ENV not in os.environ and TOKEN_PATH_ENV not in os.environ
    os.environ.setdefault(AUTH_MODE_ENV, "token")
    if own_token:
        os.environ[TOKEN_ENV] = secrets.token_hex(32)  # in no file: a later cluster has another
    else:
        require_token()
        _require_open_port(address)
    ray = import_ray()
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **(options if address == LOCAL else {}))
    except Exception as error:  # a node that takes too long to start is a bare Exception of Ray's
        if own_token:
            del os.environ[TOKEN_ENV]
        raise _no_cluster(address, error) from None
    try:
        yield ray
    finally:
        ray.shutdown()  # of processes it ends only those that it started
        if own_token:
            del os.environ[TOKEN_ENV]


def require_token() -> None:
    """Check that there is a token, unless ``RAY_AUTH_MODE`` says that the cluster has none.

    Raises:
        UserError: no token.
    """
    if os.environ.get(AUTH_MODE_ENV, "token") != "token" or os.environ.get(TOKEN_ENV):
        return
    path = Path(os.environ.get(TOKEN_PATH_ENV) or "~/.ray/auth_token").expanduser()
    if not path.is_file():
        raise UserError(
            "infer.engine_address",
            f"the cluster's token is missing, expected {TOKEN_ENV} or the file {path}",
            f"Set {TOKEN_ENV} or {TOKEN_PATH_ENV} as on the head node; {AUTH_MODE_ENV}=disabled for a cluster without.",
        )


def head_address(address: str) -> str | None:
    """Return HOST:PORT of the head; None for ``auto`` where nothing on this machine names one."""
    if address != "auto":
        return address
    named = os.environ.get("RAY_ADDRESS", "")
    current = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"  # of the last `ray start`
    if not named and current.is_file():
        named = current.read_text(encoding="utf-8").strip()
    return named or None


def _require_open_port(address: str) -> None:
    """Refuse a head whose port is closed: Ray itself would go on asking for many minutes, without a word."""
    host, _, port = (head_address(address) or "").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _no_cluster(f"{host}:{port}", error) from None


def nodes(ray: Any) -> list[Node]:
    """List the nodes that are alive."""
    return [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def describe(found: Sequence[Node]) -> str:
    """Return nodes and resources in words."""
    cpus, gpus = sum(node.num_cpus for node in found), sum(node.num_gpus for node in found)
    return f"{len(found)} nodes alive with {cpus:g} CPUs and {gpus:g} GPUs"


def _no_cluster(address: str, error: Exception) -> UserError:
    message = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if "ersion mismatch" in str(error):
        return UserError(
            "infer.engine_address",
            f"the cluster at {address} has another version ({message}), expected the same Ray and Python",
            "Use the same image on all nodes.",
        )
    return ClusterUnreachableError(
        "infer.engine_address",
        f"the cluster at {address} cannot be joined ({message}), expected a node of it on this machine",
        "Start a node here (ray start --address=HEAD:6379 --num-cpus=0 --num-gpus=0), or check the token.",
    )
