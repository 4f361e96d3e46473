"""The engine on Ray: the same files as the local engine's, and errors that name their cause."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

import tasks.infer
from tasks.model.engines import ray_cluster
from tasks.model.engines.ray_cluster import ClusterUnreachableError, Node, require_token
from tasks.model.engines.ray_pool import RayBackend, check_piece_file
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.tasks import test_detection_stages as stages
from tests.tasks.model.engines.campaign import Campaign, needs_ray


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign(tmp_path)


@pytest.mark.integration
@needs_ray
def test_a_cluster_of_this_machine_writes_the_same_bytes(campaign: Campaign) -> None:
    """An image is spoilt: the cause is named. The local engine goes on from what the actor has left."""
    campaign.run("infer.engine=local")
    expected = campaign.outputs()
    with campaign.spoilt_image() as name:
        failed = campaign.run("infer.engine=ray", "infer.engine_workers=1", check=False)
    assert failed.returncode == UserError.exit_code, failed.stderr
    assert failed.stderr.startswith(f"{name}: the image is unreadable")
    assert len(failed.stderr.strip().splitlines()) == 1
    kept = campaign.finished_pieces()
    assert len(kept) >= campaign.num_pieces - 2  # all but the last of the pool and that of the labeled images
    done = campaign.run("infer.engine=local")
    assert f"infer piece 1/{campaign.num_pieces - len(kept)}:" in done.stdout
    assert campaign.outputs() == expected


def test_the_engine_is_no_part_of_the_key_of_finished_work(tmp_path: Path) -> None:
    stages.write_params(tmp_path)
    local = tasks.infer._input_key(stages.stage_params(tmp_path), "digest")
    stages.write_params(
        tmp_path,
        *("infer.engine=ray", "infer.engine_address=auto", "infer.engine_workers=7"),
        *("infer.engine_cpus_per_worker=0.25", "infer.engine_timeout_minutes=1.5"),
    )
    assert tasks.infer._input_key(stages.stage_params(tmp_path), "digest") == local
    stages.write_params(tmp_path, "infer.score_threshold=0.5")
    assert tasks.infer._input_key(stages.stage_params(tmp_path), "digest") != local


@pytest.mark.parametrize("address", ["", "ray://head:10001", "head", "auto:1:2"])
def test_an_address_that_ray_would_misread_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"infer\.engine_address"):
        stages.write_params(tmp_path, f"infer.engine_address='{address}'")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"infer\.engine is 'ray' without the package ray, expected gleaner\[ray\]"):
        ray_cluster.import_ray()


def test_a_cluster_needs_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (ray_cluster.TOKEN_ENV, ray_cluster.TOKEN_PATH_ENV, ray_cluster.AUTH_MODE_ENV):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"the cluster's token is missing, expected RAY_AUTH_TOKEN or the file"):
        require_token()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    require_token()
    monkeypatch.setenv(ray_cluster.TOKEN_PATH_ENV, str(tmp_path / "missing"))
    with pytest.raises(UserError, match="missing"):
        require_token()
    monkeypatch.setenv(ray_cluster.TOKEN_ENV, "secret")
    require_token()
    monkeypatch.delenv(ray_cluster.TOKEN_ENV)
    monkeypatch.setenv(ray_cluster.AUTH_MODE_ENV, "disabled")
    require_token()


@pytest.mark.integration
@needs_ray
def test_no_cluster_on_this_machine_is_named(campaign: Campaign) -> None:
    failed = campaign.run("infer.engine=ray", "infer.engine_address='127.0.0.1:9'", check=False)
    assert failed.returncode == UserError.exit_code
    assert "the cluster's token is missing" in failed.stderr
    campaign.env["RAY_AUTH_TOKEN"] = "0" * 64
    failed = campaign.run("infer.engine=ray", "infer.engine_address='127.0.0.1:9'", check=False)
    assert failed.returncode == ClusterUnreachableError.exit_code
    assert "the cluster at 127.0.0.1:9 cannot be joined" in failed.stderr


def test_a_file_of_a_folder_that_is_not_shared_is_named(tmp_path: Path) -> None:
    path = tmp_path / "piece.parquet"
    with pytest.raises(UserError, match="missing or another one, expected the same folder on all nodes"):
        check_piece_file(path, "0", timeout_s=0.0)
    path.write_bytes(b"content")
    check_piece_file(path, files.sha256_file(path), timeout_s=0.0)


class FakeRay:
    def __init__(self, *found: Node) -> None:
        self.found = found

    def put(self, value: Any) -> Any:
        return pickle.loads(pickle.dumps(value))

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": node.node_id,
                "NodeManagerAddress": node.address,
                "Alive": True,
                "Resources": {"CPU": node.num_cpus, "GPU": node.num_gpus},
            }
            for node in self.found
        ]


@pytest.mark.parametrize(
    ("found", "num_threads", "cpus_per_worker", "expected"),
    [
        ([Node("", "a", 2, 0)], 1, "auto", 4),  # half a CPU each
        ([Node("", "a", 2, 0), Node("", "b", 4, 0)], 2, "auto", 3),  # one and a half each: 1 + 2
        ([Node("", "a", 4, 0)], 16, "auto", 1),  # no more than a node has, less a half
        ([Node("", "driver", 0, 0), Node("", "b", 4, 0)], 2, 2.0, 2),  # the node without CPUs gets none
        (
            [Node("", "driver", 0, 0), Node("", "b", 16, 4), Node("", "c", 8, 0)],
            16,
            "auto",
            4,
        ),  # only where there are GPUs
        ([Node("", "driver", 0, 0)], 2, "auto", 1),  # asks an autoscaler for a first one
    ],
)
def test_room_of_a_cluster(
    found: list[Node], num_threads: int, cpus_per_worker: float | str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: num_threads)
    job: Any = None
    assert RayBackend(FakeRay(*found), job, cpus_per_worker).capacity() == expected
