"""The real training, asked to leave in the middle: it keeps its state, and nothing of the result changes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.workspace.scaffold import create_workspace
from tasks.data.paths import Workspace
from tasks.runtime.errors import EXIT_INTERRUPTED
from tasks.runtime.stage_main import MICRO_BATCHES_ENV
from tasks.storage import files
from tests.flows.small_campaign import make_source, subprocess_env, workspace_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
ITERATIONS = 8
SETTINGS = (
    "model.fpn_channels=32",
    "model.short_side_px=64",
    "model.long_side_px=96",
    f"train.iterations={ITERATIONS}",
    "train.burn_in_iterations=3",
    "train.checkpoint_every_iterations=1",
    "train.labeled_batch_size=2",
    "train.num_workers=1",
    "ssl.pseudo_label_threshold=0.05",
)


def start(workspace: Workspace, stage: str, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tasks", stage],
        cwd=workspace.root,
        env=subprocess_env(PYTHONWARNINGS="ignore", **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(workspace: Workspace, stage: str, **changes: str) -> str:
    process = start(workspace, stage, **changes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("signals")
    workspace = Workspace(folder / "campaign")
    create_workspace(workspace.root, workspace_config(make_source(folder / "source"), *SETTINGS))
    for stage in ("prepare", "assemble"):
        run(workspace, stage)
    return workspace


@pytest.fixture(scope="module")
def reference_digests(assembled: Workspace) -> dict[str, str]:
    """Digests of what an uninterrupted training writes."""
    run(assembled, "train")
    digests = output_digests(assembled)
    shutil.rmtree(assembled.derived("train"))
    return digests


def output_digests(workspace: Workspace) -> dict[str, str]:
    out = workspace.derived("train")
    return {path.name: files.sha256_file(path) for path in sorted(out.iterdir())}


def wait_for_exit(pids: list[int]) -> None:
    """A worker that was killed may be on its way out for a moment on a busy machine."""
    deadline_s = time.monotonic() + 15
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline_s, "something outlived the training"
        time.sleep(0.05)


def test_sigterm_to_the_whole_group_keeps_the_state_and_going_on_changes_nothing(
    assembled: Workspace, reference_digests: dict[str, str]
) -> None:
    checkpoint = assembled.scratch("train") / "checkpoint.pth"
    training = start(assembled, "train")
    deadline_s = time.monotonic() + 120
    while not checkpoint.is_file():
        assert training.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    family = [training.pid, *(child.pid for child in psutil.Process(training.pid).children(recursive=True))]
    asked_s = time.monotonic()
    os.killpg(training.pid, signal.SIGTERM)  # as a night does; the worker that reads ahead gets it too
    said, _ = training.communicate(timeout=60)
    assert training.returncode == EXIT_INTERRUPTED, said
    assert time.monotonic() - asked_s < 30
    assert len(family) > 1
    wait_for_exit(family)
    assert "asked to leave; saved at iteration" in said
    assert "Traceback" not in said
    assert not assembled.derived("train").exists()

    said = run(assembled, "train")
    assert "going on at iteration" in said
    assert output_digests(assembled) == reference_digests
    assert not checkpoint.exists()


def test_half_the_batch_is_in_the_summary_and_the_method_stays(
    assembled: Workspace, reference_digests: dict[str, str]
) -> None:
    run(assembled, "train", **{MICRO_BATCHES_ENV: "2"})
    summary = files.read_json(assembled.derived("train") / "summary.json")
    assert summary["micro_batches"] == 2
    assert summary["iterations"] == ITERATIONS
    assert set(output_digests(assembled)) == set(reference_digests)


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_training_on_a_full_disk_says_so_and_goes_on_when_there_is_space(
    assembled: Workspace, reference_digests: dict[str, str], full_disk: Path
) -> None:
    """``.gleaner/train`` lies on a file system of 8 MiB, too small for a checkpoint."""
    scratch = assembled.scratch("train")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.symlink_to(full_disk, target_is_directory=True)
    try:
        training = start(assembled, "train")
        said, _ = training.communicate(timeout=120)
        assert training.returncode == 5, said
        assert "the space left on the disk is 0" in said
        assert "Traceback" not in said
        assert list(full_disk.iterdir()) == []  # no half checkpoint, nothing temporary
    finally:
        scratch.unlink()
    run(assembled, "train")
    assert output_digests(assembled) == reference_digests


def test_an_inference_on_a_full_disk_says_so_and_goes_on_when_there_is_space(
    assembled: Workspace, reference_digests: dict[str, str], full_disk: Path
) -> None:
    """The first of its shards finds no space; the images before it are not lost to anything half-written."""
    if not assembled.derived("train").is_dir():
        run(assembled, "train")
    scratch = assembled.scratch("infer")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.symlink_to(full_disk, target_is_directory=True)
    ballast = full_disk / "ballast"
    ballast.write_bytes(b"x" * ((8 << 20) - os.statvfs(full_disk).f_frsize * 2))
    try:
        inference = start(assembled, "infer")
        said, _ = inference.communicate(timeout=120)
        assert inference.returncode == 5, said
        assert said.strip().splitlines()[-1].startswith("infer: the space left on the disk is 0")
        assert not list(full_disk.rglob("*.parquet")) + list(full_disk.rglob("*.tmp"))
        assert not assembled.derived("infer").exists()
        ballast.unlink()
        run(assembled, "infer")
        assert list(assembled.derived("infer").glob("shard-*.parquet"))
    finally:
        scratch.unlink()
