"""Real servers that fail for a while, or for good, in the middle of a night."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_URL

from flows.nightly import publish_round, push_data
from flows.registry.publish import PublishError
from flows.runtime.retries import RETRY_DELAYS_S, translate_service_errors
from flows.runtime.subprocess import set_pdeathsig
from flows.workspace import dvc, git
from flows.workspace.dvc import DvcError
from flows.workspace.owner import read_owner, settle
from flows.workspace.rounds import stage_log
from infra.services.ports import free_ports
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.runtime.errors import DiskFullError
from tasks.storage import files
from tests.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.flows.cli_runner import start_cli_run, wait_until
from tests.flows.small_campaign import run_gleaner, subprocess_env
from tests.services import S3Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_test_server")]
TEACHER_BYTES = 3 << 20
SOON = [0.5] * len(RETRY_DELAYS_S)
PASSING: list[tuple[Fault, Callable[[FaultyProxy], None]]] = [
    ("refused", lambda proxy: proxy.inject("refused", recover_after_s=1.5)),
    ("500", lambda proxy: proxy.inject("500", connections=3)),
    ("hang", lambda proxy: proxy.inject("hang", connections=3)),
    ("cut", lambda proxy: proxy.inject("cut", connections=2, cut_after_bytes=TEACHER_BYTES // 4)),
    ("slow", lambda proxy: proxy.inject("slow")),
]


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on SQLite that keeps artifacts itself."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_ports()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "a")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *stores],
            env=subprocess_env(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=set_pdeathsig(signal.SIGTERM),  # also when the tests are killed
        )
        try:
            _wait_for(f"{address}/health")
            yield address
        finally:
            os.killpg(server.pid, 9)
            server.wait()


def _wait_for(url: str) -> None:
    deadline_s = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)


@pytest.fixture
def unpublished(after_two_rounds: Workspace) -> Workspace:
    """Round 1 is derived and not published; its teacher is large enough to be cut in the middle."""
    return unpublish(after_two_rounds)


@pytest.fixture
def unpublished_without_mlflow(two_rounds: Workspace, tmp_path: Path) -> Workspace:
    """The same, and MLflow has never heard of the campaign."""
    workspace = Workspace(tmp_path / "tiny")
    shutil.copytree(two_rounds.root, workspace.root)
    (workspace.root / "mlflow.db").unlink()
    shutil.rmtree(workspace.root / "mlartifacts", ignore_errors=True)
    owner = read_owner(workspace)
    assert owner is not None
    settle(workspace, owner.owner_id)
    return unpublish(workspace)


def unpublish(workspace: Workspace) -> Workspace:
    git.run_git(workspace.root, "tag", "--delete", "round-0001")
    files.write_bytes(workspace.derived("train") / "teacher.pth", os.urandom(TEACHER_BYTES))
    return workspace


@pytest.fixture
def through_proxy(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Round 1 goes to the real server through a proxy; a request has little patience."""
    with faulty_proxy(mlflow_server) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield proxy


def publish(workspace: Workspace) -> None:
    """As a night does, with less patience."""
    with translate_service_errors("MLflow", PublishError):
        publish_round.with_options(retry_delay_seconds=SOON)(workspace, load_params(workspace.params), 1)


def published(workspace: Workspace, server: str) -> None:
    """One run, one version, one tag, and the teacher is whole."""
    client = MlflowClient(server)
    campaign = git.campaign_id(workspace.root)
    (experiment,) = client.search_experiments(filter_string=f"tags.`gleaner.campaign` = '{campaign}'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    (version,) = client.search_model_versions(f"name = '{experiment.name}'")
    place = client.download_artifacts(run.info.run_id, "ledger")
    assert [path.name for path in Path(place).iterdir()] == ["round-0001.json"]
    import mlflow

    mlflow.set_tracking_uri(server)
    model = Path(mlflow.artifacts.download_artifacts(f"models:/{experiment.name}/{version.version}"))
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    (stored,) = model.rglob("teacher.pth")
    assert files.sha256_file(stored) == files.sha256_file(workspace.derived("train") / "teacher.pth")
    assert git.has_tag(workspace.root, "round-0001")
    client.delete_registered_model(experiment.name)
    client.rename_experiment(experiment.experiment_id, f"{experiment.name}-{run.info.run_id}")
    client.set_experiment_tag(experiment.experiment_id, "gleaner.campaign", "an earlier test")


@pytest.mark.parametrize("fault", [name for name, _ in PASSING])
def test_an_mlflow_that_fails_for_a_while_gets_the_round_all_the_same(
    unpublished: Workspace, through_proxy: FaultyProxy, mlflow_server: str, fault: str
) -> None:
    dict(PASSING)[fault](through_proxy)  # type: ignore[index]
    publish(unpublished)
    assert fault == "refused" or through_proxy.num_faults > 0
    through_proxy.inject("none")
    published(unpublished, mlflow_server)


@pytest.mark.parametrize("fault", ["refused", "500", "cut"])
def test_an_mlflow_that_is_gone_is_named_and_the_next_night_goes_on(
    unpublished: Workspace, through_proxy: FaultyProxy, mlflow_server: str, fault: Fault
) -> None:
    through_proxy.inject(fault, cut_after_bytes=TEACHER_BYTES // 4)
    with pytest.raises(PublishError, match="gleaner run resumes from there when MLflow answers") as caught:
        publish(unpublished)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert not git.has_tag(unpublished.root, "round-0001")
    through_proxy.inject("none")
    publish(unpublished)
    published(unpublished, mlflow_server)


@pytest.fixture
def remote(
    after_two_rounds: Workspace, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Workspace, FaultyProxy, str]]:
    """A campaign whose DVC remote is an S3 server behind the proxy."""
    bucket = s3_server.new_bucket()
    s3_server.set_environment(monkeypatch)
    with faulty_proxy(s3_server.url) as proxy:
        root = after_two_rounds.root
        for arguments in (
            ("add", "--local", "--default", "s3", f"s3://{bucket}/store"),
            ("modify", "--local", "s3", "endpointurl", proxy.url),
            ("modify", "--local", "s3", "read_timeout", "2"),
            ("modify", "--local", "s3", "connect_timeout", "2"),
        ):
            dvc.run_dvc(root, "remote", *arguments)
        yield after_two_rounds, proxy, bucket


def all_pushed(workspace: Workspace) -> bool:
    return "in sync" in dvc.run_dvc(workspace.root, "status", "--cloud", "--all-tags")


def test_a_remote_that_fails_for_a_while_gets_everything(remote: tuple[Workspace, FaultyProxy, str]) -> None:
    workspace, proxy, _ = remote
    push = push_data.with_options(retry_delay_seconds=SOON)
    for fault, connections, cut in (("reset", 3, 0), ("500", 3, 0), ("cut", 2, 300)):
        proxy.inject(fault, connections, cut)  # type: ignore[arg-type]
        assert push(workspace)
        assert proxy.num_faults > 0
    proxy.inject("none")
    assert all_pushed(workspace)


def test_a_remote_that_is_gone_or_refuses_is_named(remote: tuple[Workspace, FaultyProxy, str]) -> None:
    workspace, proxy, _ = remote
    push = push_data.with_options(retry_delay_seconds=[0.0] * len(RETRY_DELAYS_S))
    proxy.inject("refused")
    with pytest.raises(DvcError, match="dvc push ended with code") as caught:
        push(workspace)
    assert caught.value.transient
    proxy.inject("none")
    assert push(workspace)
    assert all_pushed(workspace)


def test_a_remote_that_refuses_the_key_is_not_asked_again(
    remote: tuple[Workspace, FaultyProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _, _ = remote
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DvcError) as caught:
        push_data(workspace)  # with its long delays: it would take minutes
    assert not caught.value.transient


def test_a_prefect_api_that_is_away_for_a_while_is_not_noticed_and_one_that_is_gone_is_named(
    small_campaign: Workspace,
) -> None:
    api_url = PREFECT_API_URL.value()
    assert api_url is not None
    with faulty_proxy(api_url) as proxy:
        impatient = {"PREFECT_API_URL": f"{proxy.url}/api", "PREFECT_CLIENT_MAX_RETRIES": "1"}
        night = start_cli_run(small_campaign.root, **impatient)
        wait_until(lambda: stage_log(small_campaign, 0, "train").is_file())
        proxy.inject("refused")
        said, _ = night.communicate(timeout=200)
        assert night.returncode == 1, said
        assert "Traceback" not in said
        assert "Prefect: the answer is an error" in said

        proxy.inject("500", connections=4)
        patient = {"PREFECT_API_URL": f"{proxy.url}/api", "PREFECT_CLIENT_RETRY_JITTER_FACTOR": "0"}
        second = run_gleaner("run", cwd=small_campaign.root, **patient)
        assert second.returncode == 0, second.stdout + second.stderr
        assert proxy.num_faults == 4
    assert git.has_tag(small_campaign.root, "round-0000")
    assert stage_log(small_campaign, 0, "prepare").read_text().count("Running stage 'prepare'") == 1


def test_a_disk_that_is_full_while_publishing_is_named_and_nothing_is_half_done(
    unpublished_without_mlflow: Workspace, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's artifacts lie on a file system with room for half a teacher."""
    unpublished = unpublished_without_mlflow
    (full_disk / "ballast").write_bytes(b"x" * (6 << 20))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (unpublished.root / "mlartifacts").symlink_to(full_disk, target_is_directory=True)
    with pytest.raises(DiskFullError, match="the space left on the disk is 0"):
        publish(unpublished)
    assert not git.has_tag(unpublished.root, "round-0001")
    (full_disk / "ballast").unlink()
    publish(unpublished)
    assert git.has_tag(unpublished.root, "round-0001")
