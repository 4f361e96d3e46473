"""The Compose stack with a Ray cluster, started for real: a run by Prefect's worker that detects on two nodes.

It needs root, Docker with Compose 2, the image ``gleaner`` of this checkout and one of PostgreSQL, and skips itself
without them: docs/guides/scale.md.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.workspace.scaffold import create_workspace
from infra.services.ports import free_ports
from infra.services.settings import SERVICES, load_or_create
from tasks.data.paths import Workspace
from tests.flows.small_campaign import REPOSITORY, make_source, workspace_config
from tests.test_real_round import SETTINGS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3000)]
_SHARED = Path("/srv/gleaner")  # the folder that infra/compose.yaml mounts in each container
_USER_ID = 1000  # of the image's user
_RAY = ("infer.engine=ray", "infer.engine_address=auto", "infer.engine_workers=2", "infer.shard_size=2")


def _missing() -> str | None:
    """Say what this machine lacks."""
    if shutil.which("docker") is None or os.geteuid() != 0:
        return "there is no Docker, or this user may not use it"
    for command, what in (
        (["compose", "version"], "Docker has no Compose 2"),
        (["image", "inspect", "gleaner"], "the image gleaner was not built"),
        (["image", "inspect", "postgres:15-bookworm"], "the image of PostgreSQL is not here"),
    ):
        if subprocess.run(["docker", *command], capture_output=True, check=False).returncode:
            return what
    return None


class Stack:
    """The stack of one test, with ports and volumes of its own."""

    def __init__(self, folder: Path) -> None:
        self.env = load_or_create(folder, {name: free_ports() for name in SERVICES}).environment()
        self._name = f"gleaner-test-{uuid.uuid4().hex[:8]}"

    def compose(self, *arguments: str) -> str:
        """Run one command of Compose."""
        files = ["--file", "infra/compose.yaml", "--profile", "worker", "--profile", "ray"]
        return self._run(["docker", "compose", "--project-name", self._name, *files, *arguments])

    def prefect(self, *arguments: str, **variables: str) -> str:
        """Run one command of Prefect against the stack's server."""
        return self._run([sys.executable, "-m", "prefect", "--no-prompt", *arguments], **variables)

    def _run(self, command: list[str], **variables: str) -> str:
        env = {**os.environ, **self.env, **variables}
        done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def get(self, service: str, path: str, **query: Any) -> Any:
        """Read from the API of MLflow or Prefect."""
        return json.loads(self.page(service, path, **query))

    def page(self, service: str, path: str = "", **query: Any) -> str:
        """Read what MLflow or Prefect answers."""
        answer = httpx.get(f"http://127.0.0.1:{self.env[f'GLEANER_{service.upper()}_PORT']}/{path}", params=query)
        answer.raise_for_status()
        return answer.text


@pytest.fixture
def campaign() -> Iterator[Workspace]:
    """A campaign of 16 drawn images where the containers see it."""
    if problem := _missing():
        pytest.skip(problem)
    folder = _SHARED / f"test-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    create_workspace(folder / "campaign", workspace_config(make_source(folder / "source"), *SETTINGS, *_RAY))
    subprocess.run(["chown", "--recursive", str(_USER_ID), str(folder)], check=True)
    yield Workspace(folder / "campaign")
    shutil.rmtree(folder)


@pytest.fixture
def stack(campaign: Workspace, tmp_path: Path) -> Iterator[Stack]:
    """The stack, up and healthy, with a worker and a cluster of a head and two nodes."""
    stack = Stack(tmp_path / "stack")
    try:
        stack.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", "600")
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "60")


def test_a_run_by_the_worker_detects_on_the_nodes_and_is_published(stack: Stack, campaign: Workspace) -> None:
    stack.prefect("work-pool", "create", "gpu", "--type", "process", "--overwrite")  # the worker may be first
    stack.prefect("deploy", "--all", GLEANER_CAMPAIGN=str(campaign.root))
    said = stack.prefect("deployment", "run", "nightly/nightly")
    found = re.search(r"UUID: ([0-9a-f-]{36})", said)
    assert found is not None, said
    state = _wait_for_end(stack, found[1])
    assert state["type"] == "COMPLETED", state.get("message", "") + stack.compose("logs", "--tail", "60", "worker")
    log = next((campaign.root / ".gleaner" / "logs").rglob("infer.log")).read_text()
    assert "4 nodes alive" in log  # the head, the worker, and the two that detect
    ledger = json.loads(campaign.ledger(0).read_text())
    run = stack.get("mlflow", "api/2.0/mlflow/runs/get", run_id=ledger["mlflow"]["run_id"])["run"]
    assert run["info"]["status"] == "FINISHED"
    artifacts = stack.get("mlflow", "api/2.0/mlflow/artifacts/list", run_id=ledger["mlflow"]["run_id"])
    assert "report" in [file["path"] for file in artifacts["files"]]
    for service in ("prefect", "mlflow"):
        assert "<html" in stack.page(service)


def _wait_for_end(stack: Stack, flow_run: str) -> dict[str, Any]:
    deadline_s = time.monotonic() + 1800
    while time.monotonic() < deadline_s:
        state: dict[str, Any] = stack.get("prefect", f"api/flow_runs/{flow_run}")["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return state
        time.sleep(2)
    raise AssertionError("the run did not end")
