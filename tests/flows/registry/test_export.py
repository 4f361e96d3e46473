"""Export of a pruned model, from the tables of its round to MLflow and the log."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from flows.provenance.snapshot import RoundSnapshot
from flows.registry import export
from flows.workspace.dvc_cache import DvcCache
from flows.workspace.export_log import read_exports
from flows.workspace.scaffold import create_workspace
from tasks.data.paths import Workspace
from tasks.export import package
from tasks.export.measure import Accuracy
from tasks.export.package import file_digests
from tasks.model.detector import new_detector
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.small_campaign import make_source, subprocess_env, workspace_config

pytestmark = pytest.mark.integration
SETTINGS = (
    "model.pretrained_weights=none",
    "model.fpn_channels=32",
    "model.short_side_px=64",
    "model.long_side_px=96",
    "train.labeled_batch_size=2",
    "ssl.pseudo_label_threshold=0.05",
    "export.prune_importance_images=2",
    "export.prune_finetune_iterations=2",
    "export.timed_images=1",
)


class _UncachedSnapshot(RoundSnapshot):
    """A round whose files lie in the workspace."""

    def cached_path(self, path: str) -> Path:
        return self.workspace.root / path

    def read_blob(self, path: str) -> bytes:
        return (self.workspace.root / path).read_bytes()


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("export")
    workspace = Workspace(folder / "campaign")
    create_workspace(workspace.root, workspace_config(make_source(folder / "source"), *SETTINGS))
    for stage in ("prepare", "assemble"):
        command = [sys.executable, "-m", "tasks", stage]
        subprocess.run(command, cwd=workspace.root, env=subprocess_env(), check=True, capture_output=True)
    params = load_params(workspace.params)
    torch.manual_seed(0)
    teacher = new_detector(params.model, len(params.classes), 1.5, workspace.root, "cpu")
    workspace.derived("train").mkdir()
    torch.save(teacher.state_dict(), workspace.derived("train") / "teacher.pth")
    files.write_json(workspace.derived("evaluate") / "metrics.json", {})
    return workspace


@pytest.fixture
def export_pruned(campaign: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, float], export.ExportResult]:
    """Exports the campaign's only round, 0."""
    ledger = {
        "round": 0, "campaign": "tiny", "git_revision": "0" * 40, "params_sha256": "ef" * 32,
        "mlflow": {"model_name": "tiny", "model_version": 1},
        "teacher": {"sha256": files.sha256_file(campaign.derived("train") / "teacher.pth")},
    }  # fmt: skip
    snapshot = _UncachedSnapshot(campaign, DvcCache(campaign.root, campaign.root), ledger, "HEAD")
    monkeypatch.setattr(export, "load_snapshots", lambda workspace: {0: snapshot})
    monkeypatch.setattr(export, "resolve_model_ref", lambda workspace, model_ref: 0)
    return lambda folder, fraction: export.export_model(
        campaign, None, folder, "onnx", "fp32", on_step=lambda line: None, prune_frac=fraction
    )


def test_a_pruned_model_is_exported_and_registered_with_what_was_done_to_it(
    campaign: Workspace, export_pruned: Callable[[Path, float], export.ExportResult], tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    record = export_pruned(folder, 0.5).record
    assert read_exports(campaign) == [record]
    assert (record.name, record.prune_frac) == ("tiny-onnx-fp32-pruned", 0.5)
    assert record.sha256_by_file == file_digests(folder)
    pruning = files.read_json(folder / "metadata.json")["pruning"]
    assert (pruning["fraction"], pruning["finetune_iterations"], pruning["finetune_labeled_images"]) == (0.5, 2, 3)
    assert pruning["parameters_after"] < pruning["parameters_before"]
    client = MlflowClient(f"sqlite:///{campaign.root / 'mlflow.db'}")
    [version] = client.search_model_versions(f"name = '{record.name}'")
    assert version.tags["gleaner.parent_model"] == "tiny/1"

    assert export_pruned(folder, 0.5).record == record
    assert read_exports(campaign) == [record]
    with pytest.raises(UserError, match=r"pruned by 0\.5, expected"):
        export_pruned(folder, 0.0)


def test_a_pruned_model_that_lost_too_much_is_refused_and_leaves_nothing(
    campaign: Workspace,
    export_pruned: Callable[[Path, float], export.ExportResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(package, "measure_accuracy", lambda *args: Accuracy(40.0, 38.9, 0.9, 0.9, 3))
    before = read_exports(campaign)
    with pytest.raises(package.ExportRefusedError):
        export_pruned(tmp_path / "small", 0.5)
    assert list(tmp_path.iterdir()) == []
    assert read_exports(campaign) == before


def test_a_fraction_out_of_range_is_refused_before_anything(
    export_pruned: Callable[[Path, float], export.ExportResult], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"--prune is 0\.9"):
        export_pruned(tmp_path / "small", 0.9)
