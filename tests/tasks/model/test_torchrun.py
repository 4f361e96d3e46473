"""Training as ranks of torchrun: the losses of spawned processes, and those of an undisturbed run after a rank died."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tasks.params.template import render_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.detectron_ext.ddp_launch import launch_two_processes
from tests.tasks.model.test_launch import REPOSITORY, SMALL, run_worker, workspace  # noqa: F401 (workspace is a fixture)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
ITERATIONS = 6


@pytest.fixture
def folder(workspace: Path) -> Path:  # noqa: F811
    settings = [*SMALL, f"train.iterations={ITERATIONS}", "train.checkpoint_every_iterations=1"]
    text = render_params((REPOSITORY / "params.yaml").read_text(), classes=["square", "disc"], overrides=settings)
    (workspace / "params.yaml").write_text(text)
    return workspace


def start(folder: Path, out: str) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--max-restarts=1", "--standalone"]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *torchrun, "-m", "tests.tasks.model.train_rank", str(folder), out],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # docs/guides/scale.md
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path, timeout_s: float) -> None:
    checkpoint = folder / "scratch" / "checkpoint.pth"
    deadline_s = time.monotonic() + timeout_s
    while not checkpoint.is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def losses(folder: Path, out: str) -> NDArray[np.float64]:
    """Supervised and unsupervised loss of each iteration, (iterations, 2)."""
    table = pq.read_table(folder / out / "curves.parquet")
    return np.column_stack([table["loss_sup"], table["loss_unsup"]])


def test_torchrun_trains_as_spawned_processes_do_even_after_a_rank_is_killed(folder: Path) -> None:
    launch_two_processes(run_worker, folder)
    expected = losses(folder, "out")
    assert expected.shape == (ITERATIONS, 2)
    process = start(folder, "elastic")
    wait_for_checkpoint(process, folder, timeout_s=300)
    ranks = [child for child in psutil.Process(process.pid).children() if "train_rank" in " ".join(child.cmdline())]
    assert len(ranks) == 2
    os.kill(ranks[1].pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "going on at iteration" in output
    np.testing.assert_allclose(losses(folder, "elastic"), expected, rtol=0, atol=1e-5)
    summary = files.read_json(folder / "elastic" / "summary.json")
    assert (summary["processes"], summary["iterations"], summary["reproducibility"]) == (2, ITERATIONS, "bitwise")


def test_torchrun_is_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.model.launch import launch

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UserError, match="the stage is infer, expected train"):
        launch("infer", print)
