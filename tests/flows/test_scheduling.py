"""``gleaner schedule``: what it refuses, and nights by schedule on a real server without a worker."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.runtime.gpu_lock import CONCURRENCY_LIMIT_NAME
from flows.scheduling import cron_schedule, deployment_for
from flows.workspace.rounds import stage_log
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tests.flows.small_campaign import inject_fault, run_gleaner, subprocess_env
from tests.services import call_prefect_api

pytestmark = pytest.mark.integration
_TIMEOUT_S = 300.0


def wait_until(happens: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while not happens():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.3)


def test_without_a_server_it_says_what_is_missing(small_campaign: Workspace) -> None:
    answer = run_gleaner(
        "schedule",
        str(small_campaign.root),
        cwd=small_campaign.root,
        PREFECT_HOME=str(small_campaign.root / "no-profile"),
    )
    assert answer.returncode == 1
    assert answer.stderr.startswith("PREFECT_API_URL: the variable is not set")
    assert "make services-up" in answer.stderr


def test_a_server_that_does_not_answer_is_named(small_campaign: Workspace) -> None:
    answer = run_gleaner(
        "schedule", str(small_campaign.root), cwd=small_campaign.root, PREFECT_API_URL="http://127.0.0.1:9/api"
    )
    assert answer.returncode == 1
    assert "Prefect server: the health check failed" in answer.stderr
    assert "http://127.0.0.1:9/api" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_two_campaigns_of_one_name_are_refused(small_campaign: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "other" / small_campaign.root.name
    shutil.copytree(small_campaign.root, other)
    answer = run_gleaner("schedule", str(small_campaign.root), str(other), cwd=tmp_path)
    assert answer.returncode == 2
    assert "2 folders are named" in answer.stderr


def test_a_folder_without_a_campaign_is_refused(tmp_path: Path) -> None:
    answer = run_gleaner("schedule", str(tmp_path), cwd=tmp_path)
    assert answer.returncode == 2
    assert "the folder is no campaign" in answer.stderr


@pytest.mark.parametrize(
    ("cron", "timezone", "words"),
    [
        ("at two", "UTC", "--cron: the value is 'at two'"),
        ("61 2 * * *", "UTC", "--cron: the value is '61 2 * * *'"),
        ("0 2 * * *", "Middle-earth/Shire", "--timezone: the value is 'Middle-earth/Shire'"),
        ("0 2 * * *", "../../etc/passwd", "--timezone: the value is '../../etc/passwd'"),
        ("0 2 * * *", "localtime", "--timezone: the value is 'localtime'"),
        ("0 2 * * *", "", "--timezone: the value is ''"),
        ("*/5 * * * * *", "UTC", "--cron: the value is '*/5 * * * * *' (6 fields), expected five fields"),
        ("0 2 * *", "UTC", "--cron: the value is '0 2 * *' (4 fields), expected five fields"),
        ("", "UTC", "--cron: the value is '' (0 fields), expected five fields"),
        ("r r 2 * *", "UTC", "--cron: the value is 'r r 2 * *'"),
        ("0 2 31 2 *", "UTC", "--cron: the value is '0 2 31 2 *', which never fires"),
        ("0 2 31 4,6,9,11 *", "Europe/Berlin", "--cron: the value is '0 2 31 4,6,9,11 *', which never fires"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(cron: str, timezone: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        cron_schedule(cron, timezone)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(
    "cron", ["0 2 * * *", "* * * * *", "0 2 29 2 *", "0 2 * * 7", "0 2 * * MON-FRI", "0 2 L * *", "@daily"]
)
def test_a_schedule_that_fires_is_taken_as_it_is(cron: str) -> None:
    assert cron_schedule(cron, "Europe/Berlin").cron == cron


def test_a_time_zone_in_other_letters_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Europe/London"):
        cron_schedule("0 2 * * *", "europe/london")


def test_a_night_still_at_work_has_the_next_one_cancelled() -> None:
    deployment = deployment_for(Path("/srv/gleaner/cells"), cron_schedule("0 2 * * *", "Europe/Berlin"))
    assert (deployment.name, deployment.parameters) == ("cells", {"root": "/srv/gleaner/cells"})
    assert deployment.entrypoint == "flows.nightly.nightly"
    assert deployment.concurrency_limit == 1
    assert deployment.concurrency_options is not None
    assert deployment.concurrency_options.collision_strategy == "CANCEL_NEW"


@pytest.mark.services
@pytest.mark.timeout(900)
def test_nights_come_by_schedule_and_sigterm_ends_all_but_the_schedule(
    small_campaign: Workspace, prefect_url: str, tmp_path: Path
) -> None:
    inject_fault(small_campaign, "train", "hang")
    log = tmp_path / "serve.log"
    shell = subprocess_env(PREFECT_API_URL=f"{prefect_url}/api", PREFECT_HOME=str(tmp_path / "home"))
    command = [sys.executable, "-m", "flows.cli", "schedule", str(small_campaign.root), "--cron", "* * * * *"]
    with log.open("wb") as output:
        serving = subprocess.Popen(
            [*command, "--timezone", "Europe/Berlin"], env=shell, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        begun = stage_log(small_campaign, 0, "train")
        wait_until(lambda: begun.is_file() and "train is at work" in begun.read_text(), "the night did not begin")
        children = psutil.Process(serving.pid).children(recursive=True)
        serving.terminate()
        code = serving.wait(_TIMEOUT_S)
    finally:
        serving.kill()
        serving.wait()
    wait_until(lambda: not [child for child in children if child.is_running()], "somebody survived")
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    limits = {limit["name"]: limit["limit"] for limit in call_prefect_api(prefect_url, "v2/concurrency_limits/filter")}
    assert limits[CONCURRENCY_LIMIT_NAME] == 1
    by_name = {"name": {"any_": [small_campaign.root.name]}}
    first = call_prefect_api(prefect_url, "flow_runs/filter", deployments=by_name, sort="EXPECTED_START_TIME_ASC")[0]
    assert (first["state_type"], first["auto_scheduled"]) == ("CRASHED", True)  # it said goodbye itself
    deployment = call_prefect_api(prefect_url, "deployments/filter", deployments=by_name)[0]
    assert deployment["paused"] is False
    assert deployment["schedules"][0]["active"] is True
    assert deployment["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
