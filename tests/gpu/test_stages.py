"""The stages of a round on a GPU, each in a process of its own: train, kill, resume, infer, evaluate."""

import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from flows.workspace.scaffold import create_workspace
from tasks.data import schemas
from tasks.data.detections import read_detections
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.small_campaign import make_source, workspace_config
from tests.tasks.test_train_signals import ITERATIONS, SETTINGS, run, start

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def kill_after_first_checkpoint(workspace: Workspace) -> None:
    """Start the training and kill its whole process group without a chance to save."""
    checkpoint = workspace.scratch("train") / "checkpoint.pth"
    training = start(workspace, "train")
    deadline_s = time.monotonic() + 300
    try:
        while not checkpoint.is_file():
            assert training.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    finally:
        os.killpg(training.pid, signal.SIGKILL)
        training.communicate(timeout=60)
    assert not workspace.derived("train").exists()


def test_a_killed_training_resumes_and_its_teacher_infers_and_is_evaluated(device: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "campaign")
    create_workspace(workspace.root, workspace_config(make_source(tmp_path / "source"), *SETTINGS))
    for stage in ("prepare", "assemble"):
        run(workspace, stage)
    kill_after_first_checkpoint(workspace)
    assert "going on at iteration" in run(workspace, "train")
    summary = files.read_json(workspace.derived("train") / "summary.json")
    on_cpu = device == "cpu"
    assert summary["device"] == ("cpu" if on_cpu else torch.cuda.get_device_name())
    assert summary["reproducibility"] == ("bitwise" if on_cpu else "statistical")
    assert summary["iterations"] == ITERATIONS
    curves = pq.read_table(workspace.derived("train") / "curves.parquet")
    assert curves["iteration"].to_pylist() == list(range(1, ITERATIONS + 1))
    run(workspace, "infer")
    unlabeled = files.read_table(workspace.derived("assemble") / "unlabeled.parquet", schemas.UNLABELED)
    detected = {one.image_id for one in read_detections(workspace.derived("infer"))}
    assert set(unlabeled["image_id"].to_pylist()) <= detected
    run(workspace, "evaluate")
    predictions = files.read_table(workspace.derived("evaluate") / "predictions.parquet", schemas.PREDICTIONS)
    assert set(predictions["model"].to_pylist()) == {"teacher", "student"}
