"""What is left when a machine is lost: a git remote, two buckets, an MLflow server. It must be enough."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.provenance.snapshot import load_snapshots
from flows.workspace import dvc
from flows.workspace import git as vcs
from flows.workspace.rounds import read_ledger
from flows.workspace.scaffold import create_workspace, pool_source_override
from tasks.data.paths import STAGES, Workspace
from tasks.data.schemas import INDEX
from tasks.storage import files
from tasks.storage.s3 import write_object
from tests.flows.small_campaign import fake_heavy_stages, make_source, run_gleaner, workspace_config
from tests.services import S3Server

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.services,
    pytest.mark.timeout(1800),  # minutes on a free machine; with much else going on, several times that
]


@dataclass(frozen=True)
class RemoteServices:
    """Where everything is that does not die with the workspace."""

    s3: S3Server
    pool: str
    """s3:// prefix of the images."""
    store_bucket: str
    """Of the DVC remote, which fills it from the top."""
    git: Path
    mlflow_url: str

    @property
    def environment(self) -> Mapping[str, str]:
        return {**self.s3.environment(), "MLFLOW_TRACKING_URI": self.mlflow_url, "COLUMNS": "200"}

    def flip(self, bucket: str, key: str) -> None:
        """One bit of the last byte but eight of an object."""
        client = self.s3.client()
        content = bytearray(client.get_object(Bucket=bucket, Key=key)["Body"].read())
        content[-9] ^= 1
        client.put_object(Bucket=bucket, Key=key, Body=bytes(content))


@pytest.fixture
def remote_services(
    s3_server: S3Server, mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RemoteServices:
    """Empty remotes, and an environment that knows them."""
    s3_server.set_environment(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    bare = tmp_path / "origin.git"
    vcs.run_git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    return RemoteServices(s3_server, f"s3://{s3_server.new_bucket()}/pool", s3_server.new_bucket(), bare, mlflow_url)


@pytest.fixture
def clone(remote_services: RemoteServices, tmp_path: Path, prefect_test_server: None) -> Workspace:
    """Of a campaign after two nights whose own folder, with both caches, is gone."""
    from flows.nightly import run_rounds

    lost = Workspace(tmp_path / "lost" / "tiny")
    make_campaign(lost, remote_services, tmp_path / "source")
    assert [result.outcome for result in run_rounds(lost.root, 2)] == ["completed", "completed"]
    vcs.run_git(lost.root, "push", "--quiet", "origin", "main", "--tags")
    assert not (lost.root / "mlflow.db").exists()
    shutil.rmtree(lost.root.parent)
    shutil.rmtree(tmp_path / "source")
    vcs.run_git(tmp_path, "clone", "--quiet", str(remote_services.git), str(tmp_path / "found"))
    return Workspace(tmp_path / "found")


def make_campaign(workspace: Workspace, remote_services: RemoteServices, folder: Path) -> None:
    """As the operations guide says: init on a bucket, a DVC remote, a git remote."""
    source = make_source(folder)
    assert isinstance(source.images, Path)
    for path in source.images.iterdir():
        write_object(f"{remote_services.pool}/{path.name}", path.read_bytes())
    new = replace(workspace_config(source, pool_source_override(remote_services.pool)), bucket=remote_services.pool)
    create_workspace(workspace.root, new)
    fake_heavy_stages(workspace)
    dvc.run_dvc(workspace.root, "remote", "add", "--default", "store", f"s3://{remote_services.store_bucket}")
    vcs.commit(workspace, "DVC remote")
    vcs.run_git(workspace.root, "remote", "add", "origin", str(remote_services.git))


def test_with_remote_data_alone_rounds_are_made_again_and_proven(
    clone: Workspace, remote_services: RemoteServices
) -> None:
    ledger = read_ledger(clone, 1)
    champion = f"{ledger['mlflow']['model_name']}@champion"
    assert not (clone.root / ".dvc" / "cache").exists()
    made = run_gleaner("reproduce", "round-0001", cwd=clone.root, **remote_services.environment)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "All outputs are identical" in made.stdout
    assert made.stdout.count("Running stage") == len(STAGES)
    proven = run_gleaner("audit", champion, cwd=clone.root, **remote_services.environment)
    assert proven.returncode == 0, proven.stdout + proven.stderr
    assert "Nothing was altered" in proven.stdout
    assert proven.stdout.count("skip") == len(["signatures", "recompute", "skipped."])  # MLflow was asked, too
    assert vcs.run_git(clone.root, "status", "--porcelain") == ""
    assert_no_secrets(clone, remote_services)
    snapshot = load_snapshots(clone)[1]
    teacher = snapshot.md5("derived/train/teacher.pth")
    assert teacher is not None
    remote_services.flip(remote_services.store_bucket, f"files/md5/{teacher[:2]}/{teacher[2:]}")
    image = files.read_table(snapshot.cached_path("data/index.parquet"), INDEX)["uri"][0].as_py()
    bucket, _, key = image.removeprefix("s3://").partition("/")
    remote_services.flip(bucket, key)
    shutil.rmtree(clone.root / ".dvc" / "cache")
    failed = run_gleaner("audit", champion, "--json", cwd=clone.root, **remote_services.environment)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    found = [line for check in json.loads(failed.stdout)["checks"] for line in check["findings"]]
    assert any(line.startswith("round-0001:derived/train") and "MD5 of" in line for line in found), found
    assert any(line.startswith(f"{image}: SHA-256 is") for line in found), found
    assert len(found) == 2, found


def assert_no_secrets(clone: Workspace, remote_services: RemoteServices) -> None:
    """Neither the history nor MLflow knows the key of the object store."""
    secret, client = remote_services.s3.key.secret, MlflowClient(remote_services.mlflow_url)
    assert secret not in vcs.run_git(clone.root, "log", "--all", "--patch")
    place = read_ledger(clone, 1)["mlflow"]
    run = client.get_run(place["run_id"])
    version = client.get_model_version(place["model_name"], str(place["model_version"]))
    assert remote_services.pool in str(run.to_dictionary())
    assert secret not in str(run.to_dictionary())
    assert secret not in str(dict(version))
