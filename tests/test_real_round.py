"""Whole nights with the real detector, DVC, git, Prefect and MLflow, killed in the middle, on 16 tiny images."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.workspace import dvc, git
from flows.workspace.export_log import read_exports
from flows.workspace.rounds import stage_log
from flows.workspace.scaffold import create_workspace
from tasks.data.paths import STAGES, Workspace
from tasks.export.package import file_digests
from tests.flows.cli_runner import stage_processes, start_cli_run
from tests.flows.small_campaign import make_source, run_gleaner, workspace_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

# The real networks, as small and short as they go.
SETTINGS = (
    "model.fpn_channels=32",
    "model.short_side_px=64",
    "model.long_side_px=96",
    "train.iterations=12",
    "train.burn_in_iterations=6",
    "train.checkpoint_every_iterations=2",
    "train.labeled_batch_size=2",
    "train.num_workers=0",
    "ssl.pseudo_label_threshold=0.05",
    "ssl.min_precision=0.0",  # pseudo-labels after so few iterations are wrong, and a round would be supervised
    "infer.shard_size=4",
    "infer.batch_size=2",
    "dwa.min_training_samples=5",
    "dwa.epochs=20",
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("real")
    create_workspace(folder / "campaign", workspace_config(make_source(folder / "source"), *SETTINGS))
    return Workspace(folder / "campaign")


def kill_during_stage(workspace: Workspace, stage: str, marker: Path) -> None:
    """SIGKILL a night as soon as ``marker`` stands on the disk, and see that nothing of it lives on."""
    killed = start_cli_run(workspace.root, subprocess.DEVNULL)
    deadline_s = time.monotonic() + 300
    while not list(marker.parent.glob(marker.name)):
        assert killed.poll() is None, f"the night ended before it was killed in {stage}"
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    deadline_s = time.monotonic() + 30
    while stage_processes(workspace.root):
        assert time.monotonic() < deadline_s, f"{stage} outlived its night"
        time.sleep(0.2)


def run_round(workspace: Workspace) -> None:
    done = run_gleaner("run", cwd=workspace.root)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_killed_night_ends_as_one_round(workspace: Workspace) -> None:
    kill_during_stage(workspace, "train", workspace.scratch("train") / "checkpoint.pth")
    assert not (workspace.derived("train") / "teacher.pth").exists()
    kill_during_stage(workspace, "infer", workspace.scratch("infer") / "*")
    lock_before = (workspace.root / "dvc.lock").read_text()
    assert "train:" in lock_before
    run_round(workspace)

    train_log = stage_log(workspace, 0, "train").read_text()
    assert "going on at iteration" in train_log
    assert train_log.count("Running stage 'train'") == 2  # begun, killed, gone on; finished, it is not repeated
    assert "Stage 'train' didn't change, skipping" in train_log
    assert sorted(path.name for path in workspace.labels.iterdir()) == ["batch-0000.json"]
    assert [path.name for path in (workspace.root / "deliveries").iterdir()] == ["batch-0001"]
    assert dvc.run_dvc(workspace.root, "status").strip() == "Data and pipelines are up to date."


def test_the_second_round_learns_from_the_first(workspace: Workspace) -> None:
    run_round(workspace)
    ledger = json.loads(workspace.ledger(1).read_text())
    assert set(ledger["stages"]) >= set(STAGES)
    history = json.loads((workspace.derived("report") / "history.json").read_text())
    assert [entry["round"] for entry in history] == [0, 1]
    assert history[1]["labels"] == history[0]["labels"] + 3
    dwa = json.loads((workspace.derived("weigh") / "dwa.json").read_text())
    assert dwa["num_samples"] == 5  # two calibration images and the three that came back
    assert abs(sum(dwa["mean_weights"].values()) - 1) < 1e-4
    summary = json.loads((workspace.derived("train") / "summary.json").read_text())
    assert 0 < summary["mean_image_weight"] < 1
    assert dvc.run_dvc(workspace.root, "status").strip() == "Data and pipelines are up to date."


def test_the_registered_teachers_are_the_rounds_own(workspace: Workspace) -> None:
    client = MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")
    (experiment,) = [entry for entry in client.search_experiments() if entry.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    (model,) = client.search_registered_models()
    assert len(client.search_model_versions(f"name = '{model.name}'")) == 2


def test_a_teacher_is_exported_registered_and_found_by_lineage_and_audit(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    arguments = ("export", str(folder), "round-0000", "--format", "onnx", "--precision", "int8")
    done = run_gleaner(*arguments, cwd=workspace.root)
    # Twelve iterations teach nothing that rounding could lose.
    assert done.returncode == 0, done.stdout + done.stderr
    [record] = read_exports(workspace)
    assert record.model.round == 0
    assert record.sha256_by_file == file_digests(folder)
    repeated = run_gleaner(*arguments, cwd=workspace.root)
    assert repeated.returncode == 0, repeated.stdout + repeated.stderr
    assert read_exports(workspace) == [record]

    client = MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")
    [version] = client.search_model_versions(f"name = '{record.name}'")
    teacher = json.loads(workspace.ledger(0).read_text())["mlflow"]
    assert version.tags["gleaner.parent_model"] == f"{teacher['model_name']}/{teacher['model_version']}"
    assert version.tags["gleaner.teacher_sha256"] == record.model.sha256
    lineage = run_gleaner("lineage", f"{record.name}/{record.version}", "--json", cwd=workspace.root)
    document = json.loads(lineage.stdout)
    assert document["model"]["version"] == int(teacher["model_version"])
    assert [entry["sha256_by_file"] for entry in document["model"]["exports"]] == [record.sha256_by_file]

    assert git.run_git(workspace.root, "status", "--porcelain") == ""
    assert _export_findings(workspace) == []
    text = workspace.exports.read_text()
    workspace.exports.write_text(text.replace(record.sha256_by_file["network.onnx"], "0" * 64))
    [finding] = _export_findings(workspace)
    assert "SHA-256 of network.onnx is" in finding
    workspace.exports.write_text(text)

    other = run_gleaner("export", str(folder), "round-0001", "--precision", "int8", cwd=workspace.root)
    assert other.returncode == 2
    assert "the folder is the export of teacher" in other.stderr


def _export_findings(workspace: Workspace) -> list[str]:
    audited = json.loads(run_gleaner("audit", "--json", cwd=workspace.root).stdout)
    return [line for check in audited["checks"] if check["area"] == "exports" for line in check["findings"]]


def test_a_tag_brings_the_whole_round_back(workspace: Workspace) -> None:
    root = workspace.root
    teachers = {}
    for name in ("round-0000", "round-0001"):
        subprocess.run(["git", "checkout", "-q", name], cwd=root, check=True)
        dvc.run_dvc(root, "checkout")
        teachers[name] = (workspace.derived("train") / "teacher.pth").read_bytes()
        assert dvc.run_dvc(root, "status").strip() == "Data and pipelines are up to date."
        assert f'"round": {int(name[-1])}' in (workspace.derived("assemble") / "summary.json").read_text()
    assert teachers["round-0000"] != teachers["round-0001"]
    assert git.has_tag(root, "round-0001")
