"""Training as workers of a Ray cluster: the losses of spawned processes, even after a worker is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tasks.model.engines.ray_cluster import Node
from tasks.model.engines.ray_train import Journal, _require_room
from tasks.params.template import render_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.detectron_ext.ddp_launch import launch_two_processes
from tests.tasks.model.engines.campaign import needs_ray
from tests.tasks.model.test_launch import REPOSITORY, SMALL, run_worker, workspace  # noqa: F401 (workspace is a fixture)
from tests.tasks.model.test_torchrun import losses, wait_for_checkpoint

ITERATIONS = 6


def write_params(folder: Path, *settings: str) -> None:
    given = [*SMALL, f"train.iterations={ITERATIONS}", "train.checkpoint_every_iterations=1", *settings]
    text = render_params((REPOSITORY / "params.yaml").read_text(), classes=["square", "disc"], overrides=given)
    (folder / "params.yaml").write_text(text)


def start(folder: Path, out: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.tasks.model.train_rank", str(folder), out],
        env={**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ray_workers(process: psutil.Process) -> list[psutil.Process]:
    """Processes of Ray that run the training function."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.cluster
@needs_ray
@pytest.mark.timeout(900)
def test_a_worker_that_is_killed_costs_no_loss(workspace: Path) -> None:  # noqa: F811
    write_params(workspace)
    launch_two_processes(run_worker, workspace)
    expected = losses(workspace, "out")
    write_params(workspace, "train.engine=ray", "train.engine_workers=2")
    process = start(workspace, "on_ray")
    wait_for_checkpoint(process, workspace, timeout_s=600)
    workers = ray_workers(psutil.Process(process.pid))
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "going on at iteration" in output
    np.testing.assert_allclose(losses(workspace, "on_ray"), expected, rtol=0, atol=1e-5)
    summary = files.read_json(workspace / "on_ray" / "summary.json")
    assert (summary["processes"], summary["iterations"]) == (2, ITERATIONS)
    assert not (workspace / "scratch" / "ray").exists()


@pytest.mark.cluster
@needs_ray
@pytest.mark.timeout(900)
def test_a_users_mistake_is_named_once_and_tried_once(workspace: Path) -> None:  # noqa: F811
    write_params(workspace, "train.engine=ray", "train.engine_workers=2")
    files.write_bytes(workspace / "0.png", b"no picture")
    process = start(workspace, "on_ray")
    output, _ = process.communicate()
    assert process.returncode != 0
    assert "0.png: " in output.strip().splitlines()[-1], output
    assert not (workspace / "on_ray").exists()


def test_more_workers_than_the_cluster_has_room_for_are_refused() -> None:
    """Ray would wait for a node, without a word."""
    found = [Node("a", "10.0.0.1", 2.0, 0.0), Node("b", "10.0.0.2", 0.0, 0.0)]
    _require_room(found, 4, on_gpus=False)
    with pytest.raises(UserError, match=r"train\.engine_workers is 5, expected at most 4 \(2 nodes alive"):
        _require_room(found, 5, on_gpus=False)
    with pytest.raises(UserError, match="expected at most 3"):
        _require_room([Node("a", "10.0.0.1", 64.0, 3.0)], 4, on_gpus=True)


def test_a_journal_keeps_the_first_error_and_gives_each_line_once() -> None:
    journal = Journal()
    journal.write("train 1/6")
    assert (journal.take(), journal.take()) == (["train 1/6"], [])
    assert journal.error() is None
    journal.fail(UserError("a.png", "unreadable, expected an image"))
    journal.fail(UserError("gloo", "connection closed"))
    assert str(journal.error()).startswith("a.png")
