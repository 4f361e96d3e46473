"""Try the cluster as inference would use it: ``python -m tasks.model.engines.ray_probe`` in the folder of a campaign.

Prints one JSON object on its last line; where it fails, it ends with the error's exit code and one line.
"""

import json
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.data.paths import Workspace
from tasks.model.engines.detection_job import job_fingerprint
from tasks.model.engines.ray_cluster import Node, connected, describe, nodes
from tasks.model.engines.ray_pool import RayBackend
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files

_NODE_TIMEOUT_S = 120.0


def main() -> None:
    """Run the probe in the current folder."""
    workspace = Workspace(Path.cwd())
    try:
        facts = probe(workspace)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(json.dumps(facts) + "\n")


def probe(workspace: Workspace) -> dict[str, Any]:
    """Join the cluster and let every node that computes look at a file of the campaign.

    Returns:
        ``version`` of Ray, ``nodes`` in words, ``workers`` that have room (0: none has), and of each node that would
        fail ``problems``, a sentence without its final period.

    Raises:
        UserError: ray, the token or the cluster is missing.
    """
    params = load_params(workspace.params).infer
    folder = workspace.scratch("doctor")
    marker = folder / secrets.token_hex(8)
    files.write_bytes(marker, secrets.token_hex(16).encode())
    try:
        with connected(params.engine_address) as ray:
            found = nodes(ray)
            backend = RayBackend(ray, None, params.engine_cpus_per_worker)
            problems = _node_problems(ray, found, marker.resolve())
            return {
                "version": ray.__version__,
                "nodes": describe(found),
                "workers": backend.room(),
                "problems": problems,
            }
    finally:
        marker.unlink()


def look(marker: Path, content: bytes, fingerprint: str) -> list[str]:
    """Return what differs on the node that this runs on."""
    name, problems = socket.gethostname(), []
    if not marker.is_file() or marker.read_bytes() != content:
        problems.append(f"node {name} does not see the campaign's files at {marker.parents[2]}")
    elif not os.access(marker.parent, os.W_OK):
        problems.append(f"node {name} cannot write to {marker.parent}")
    if job_fingerprint() != fingerprint:
        problems.append(f"node {name} has other code or other libraries")
    return problems


def _node_problems(ray: Any, found: Sequence[Node], marker: Path) -> list[str]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(look)
    calls = {
        task.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(
            marker, marker.read_bytes(), job_fingerprint()
        ): node
        for node in found
        if node.num_cpus
    }
    done, late = ray.wait(list(calls), num_returns=len(calls), timeout=_NODE_TIMEOUT_S) if calls else ([], [])
    problems = [f"node {calls[call].address} gave no answer within {_NODE_TIMEOUT_S:g} s" for call in late]
    for call in done:
        try:
            problems += ray.get(call)
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            problems.append(f"node {calls[call].address} cannot run Gleaner ({lines[-1] if lines else error})")
    return problems


if __name__ == "__main__":
    main()
