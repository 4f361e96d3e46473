"""Checks on services against real ones: MLflow's database, DVC remotes, Prefect's API, the command itself."""

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from flows.annotation.providers.base import LabelingProgress, ProviderError
from flows.preflight import campaign, services
from flows.preflight.checks import require_ready
from flows.preflight.probes import EXPERIMENT
from flows.preflight.runner import CheckContext, CheckSkipped
from flows.preflight.services import run_probe
from flows.workspace import git
from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.small_campaign import run_gleaner
from tests.services import S3Server, s3_server  # noqa: F401 (a fixture)

pytestmark = pytest.mark.integration
ALLOWED_WARNINGS = {"remote", "schedule", "versions", "memory", "disk", "classes", "changes"}


def set_remote(workspace: Workspace, url: str) -> None:
    with (workspace.root / ".dvc" / "config.local").open("w") as file:
        file.write(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {url}\n")


def test_the_command_on_a_healthy_campaign(small_campaign: Workspace) -> None:
    done = run_gleaner("doctor", "--json", cwd=small_campaign.root)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    states = {check["name"]: check["state"] for check in answer["checks"]}
    assert answer["state"] in ("pass", "warn")
    assert {name for name, state in states.items() if state == "warn"} <= ALLOWED_WARNINGS
    assert states["detector"] == states["MLflow"] == states["annotators"] == "pass"
    assert set(answer["night"]["minutes"]) == {"prepare", "train", "evaluate", "infer"}
    assert answer["night"]["total_minutes"] > 0
    assert git.run_git(small_campaign.root, "status", "--porcelain") == ""
    with sqlite3.connect(small_campaign.root / "mlflow.db") as database:
        stages = database.execute(
            "select r.lifecycle_stage from runs r join experiments e using (experiment_id) where e.name = ?",
            [EXPERIMENT],
        ).fetchall()
    assert stages == [("deleted",)]


def test_the_command_on_a_broken_one_names_every_trouble(small_campaign: Workspace) -> None:
    (small_campaign.root / ".git" / "MERGE_HEAD").write_text("")
    small_campaign.params.write_text(small_campaign.params.read_text().replace("seed: 7", "seed: -7"))
    done = run_gleaner("doctor", "--quick", cwd=small_campaign.root, COLUMNS="100")
    assert done.returncode == 1
    for words in ("seed is -7", "a merge is not finished", "git merge --abort", "2 fail"):
        assert words in done.stdout
    assert run_gleaner("doctor", cwd=small_campaign.root.parent).returncode == 2


def test_a_night_is_refused_with_one_message_that_names_all(small_campaign: Workspace) -> None:
    (small_campaign.root / ".git" / "MERGE_HEAD").write_text("")
    content = yaml.safe_load(small_campaign.params.read_text())
    del content["report"]
    small_campaign.params.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as refusal:
        require_ready(CheckContext(small_campaign))
    assert "failed checks are 2" in str(refusal.value)
    assert "report is missing" in str(refusal.value)
    assert "merge" in str(refusal.value)
    said = run_gleaner("run", cwd=small_campaign.root)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "failed checks are 2" in said.stderr
    assert not (small_campaign.root / ".prefect").exists()


def test_before_a_night_is_quick_and_annotators_are_not_asked(small_campaign: Workspace) -> None:
    small_campaign.oracle.unlink()
    started_s = time.monotonic()
    require_ready(CheckContext(small_campaign))
    assert time.monotonic() - started_s < 10  # 3 s a check, all at once; the rest is for a busy machine


def test_mlflow_that_somebody_holds_locked(small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert services.check_tracking(CheckContext(small_campaign)).state == "pass"
    monkeypatch.setattr(services, "TRACKING_LIMIT_S", 30.0)
    holder = sqlite3.connect(small_campaign.root / "mlflow.db", isolation_level=None)
    holder.execute("begin exclusive")
    try:
        finding = services.check_tracking(CheckContext(small_campaign))
    finally:
        holder.close()
    assert finding.state == "fail"
    assert "locked" in finding.message or "took more than" in finding.message


def test_mlflow_that_is_away_and_no_password_is_told(
    small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2hunter2@127.0.0.1:1")
    finding = services.check_tracking(CheckContext(small_campaign))
    assert finding.state == "fail"
    assert "hunter2" not in finding.message + finding.fix
    assert "127.0.0.1" in finding.message


def test_no_remote_is_a_warning(small_campaign: Workspace) -> None:
    assert services.check_remote(CheckContext(small_campaign)).state == "warn"


def test_a_local_remote_is_left_as_it_was(small_campaign: Workspace, tmp_path: Path) -> None:
    set_remote(small_campaign, str(tmp_path / "store"))
    finding = services.check_remote(CheckContext(small_campaign))
    assert (finding.state, "store" in finding.message) == ("pass", True)
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_a_remote_that_can_not_be_written(small_campaign: Workspace) -> None:
    set_remote(small_campaign, "/proc/store")  # nobody may write there, not even root
    finding = services.check_remote(CheckContext(small_campaign))
    assert finding.state == "fail"
    assert "not writable" in finding.message


@pytest.mark.services
def test_a_bucket(small_campaign: Workspace, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    s3_server.set_environment(monkeypatch)
    bucket = s3_server.new_bucket()
    set_remote(small_campaign, f"s3://{bucket}/data")
    assert services.check_remote(CheckContext(small_campaign)).state == "pass"
    assert "Contents" not in s3_server.client().list_objects_v2(Bucket=bucket)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "somebody-elses-secret")
    finding = services.check_remote(CheckContext(small_campaign))
    assert finding.state == "fail"
    assert "somebody-elses-secret" not in finding.message


def test_rounds_that_dvc_never_sends_are_named(after_two_rounds: Workspace, tmp_path: Path) -> None:
    config = after_two_rounds.root / ".dvc" / "config"
    named = config.read_text().replace("[core]\n", "[core]\n    remote = store\n")
    config.write_text(f"{named}['remote \"store\"']\n    url = {tmp_path / 'store'}\n")
    git.commit(after_two_rounds, "A remote")
    finding = services.check_remote(CheckContext(after_two_rounds))
    assert (finding.state, "leaves out 2 rounds, the first is round-0000" in finding.message) == ("warn", True)
    git.run_git(after_two_rounds.root, "tag", "--force", "round-0001", "HEAD")
    assert "leaves out 1 rounds" in services.check_remote(CheckContext(after_two_rounds)).message


@pytest.mark.services
def test_images_in_a_bucket_are_sampled_too(
    small_campaign: Workspace,
    s3_server: S3Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3_server.set_environment(monkeypatch)
    bucket = s3_server.new_bucket()
    rows = CheckContext(small_campaign).index
    for row in rows[:2]:
        content = (small_campaign.root / row["uri"]).read_bytes()
        row["uri"] = f"s3://{bucket}/{row['image_id']}.png"
        s3_server.client().put_object(Bucket=bucket, Key=f"{row['image_id']}.png", Body=content)
    files.write_table(small_campaign.index, pa.Table.from_pylist(rows, schema=INDEX))
    assert (
        campaign.check_images(CheckContext(small_campaign)).message
        == f"{len(rows)} of {len(rows)} images read, bytes as in the index"
    )
    s3_server.client().put_object(Bucket=bucket, Key=f"{rows[0]['image_id']}.png", Body=b"another")
    s3_server.client().delete_object(Bucket=bucket, Key=f"{rows[1]['image_id']}.png")
    finding = campaign.check_images(CheckContext(small_campaign))
    assert (finding.state, "2 of" in finding.message) == ("fail", True)


def test_a_probe_that_hangs_is_ended(
    small_campaign: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started_s = time.monotonic()
    with pytest.raises(UserError, match=r"more than 0\.5 s"):
        run_probe("hanging", [], cwd=tmp_path, limit_s=0.5)
    assert time.monotonic() - started_s < 5


def test_weights_that_are_none(small_campaign: Workspace) -> None:
    path = small_campaign.derived("train") / "teacher.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="the weights are unusable"):
        services.check_detector(CheckContext(small_campaign))


def test_a_provider_that_is_away_and_one_that_is_broken(
    small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        name = "away"

        def check(self) -> None:
            raise ProviderError("http://labels", "the token is refused, expected a valid one", "Set it.")

        def status(self, _: object) -> LabelingProgress:
            return LabelingProgress(2, 3)

    monkeypatch.setattr(services, "create_provider", lambda *_: Away())
    with pytest.raises(ProviderError, match="token is refused"):
        services.check_provider(CheckContext(small_campaign))
    small_campaign.params.write_text("seed: 1")
    monkeypatch.undo()
    with pytest.raises(CheckSkipped):
        services.check_provider(CheckContext(small_campaign))


def test_open_work_is_counted(after_two_rounds: Workspace) -> None:
    assert services.check_open_work(CheckContext(after_two_rounds)).message == "batch 2: 3 of 3 finished"


@pytest.fixture
def prefect_server_env(prefect_test_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL

    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))


def test_without_a_server_the_schedule_is_somebody_elses(
    small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(small_campaign.root))
    assert services.check_schedule(CheckContext(small_campaign)).state == "warn"


@pytest.mark.usefixtures("prefect_server_env")
def test_a_deployment_from_nothing_to_a_worker(small_campaign: Workspace) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
    from prefect.client.schemas.schedules import CronSchedule

    assert "knows no deployment" in services.check_schedule(CheckContext(small_campaign)).message
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow_from_name(f"night-{small_campaign.root.parent.name}")
        client.create_work_pool(WorkPoolCreate(name="doctors", type="process"))
        given: dict[str, Any] = {"parameters": {"root": str(small_campaign.root)}, "work_pool_name": "doctors"}
        client.create_deployment(flow_id=flow_id, name="nightly", **given)
        assert services.check_schedule(CheckContext(small_campaign)).message == "no schedule of nightly is active"
        cron = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 2 * * *", timezone="UTC"), active=True)
        deployment_id = client.create_deployment(flow_id=flow_id, name="nightly", schedules=[cron], **given)
        finding = services.check_schedule(CheckContext(small_campaign))
        assert (finding.state, "no worker of the pool doctors" in finding.message) == ("fail", True)
        client.send_worker_heartbeat("doctors", "worker-1", heartbeat_interval_seconds=30)
        finding = services.check_schedule(CheckContext(small_campaign))
        assert (finding.state, "nothing is planned" in finding.message) == ("fail", True)
        client.create_flow_run_from_deployment(deployment_id)
        assert services.check_schedule(CheckContext(small_campaign)).state == "pass"


def test_a_server_that_is_away(small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        finding = services.check_schedule(CheckContext(small_campaign))
    assert (finding.state, "does not answer" in finding.message) == ("fail", True)
