"""What an operator sees: JSON logs, time left, Prefect's pages read back from its API, words about a shortage."""

import io
import json
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.annotation.batches import label_supply_warning
from flows.monitoring.json_logging import (
    LOG_FORMAT_ENV,
    JsonLinesHandler,
    attach_handler,
    is_json_logging,
    json_logging,
    redirect_to,
)
from flows.monitoring.progress import Progress, StageProgress, format_duration
from flows.runtime.process_env import redact
from flows.workspace.git import campaign_key
from flows.workspace.rounds import RunResult
from tasks.data.paths import Workspace
from tasks.params import Params, load_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.small_campaign import run_gleaner

LOGGER = logging.getLogger("prefect.task_runs")


@pytest.fixture
def heard() -> Any:
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    yield
    LOGGER.setLevel(level)


def test_every_record_is_one_line_of_json(heard: None) -> None:
    text = io.StringIO()
    with redirect_to(JsonLinesHandler("screws", 2, text)):
        LOGGER.info("before")
        LOGGER.info("round %d", 3, extra={"gleaner_round": 3})
        LOGGER.info("two\nlines, a \u2028 and a ü", extra={"task_run_name": "train"})
        LOGGER.warning("careful")
    entries = [json.loads(line) for line in text.getvalue().split("\n") if line]
    assert [(entry["round"], entry["stage"], entry["level"]) for entry in entries] == [
        (2, None, "info"),
        (3, None, "info"),
        (3, "train", "info"),
        (3, None, "warning"),
    ]
    assert {entry["campaign"] for entry in entries} == {"screws"}
    assert entries[2]["message"] == "two\nlines, a \u2028 and a ü"
    assert datetime.fromisoformat(entries[0]["time"]).tzinfo == UTC


def test_a_crash_carries_its_traceback_and_a_users_mistake_does_not(heard: None) -> None:
    text = io.StringIO()
    with redirect_to(JsonLinesHandler("screws", 2, text)):
        for error in (KeyError("x"), UserError("params.yaml", "seed is -1, expected 0")):
            try:
                raise error
            except Exception:
                LOGGER.exception("it ended")
    crash, mistake = (json.loads(line) for line in text.getvalue().splitlines())
    assert "KeyError: 'x'" in crash["exception"]
    assert "exception" not in mistake


def test_no_secret_reaches_a_line(heard: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    text = io.StringIO()
    with redirect_to(JsonLinesHandler("screws", 2, text)):
        LOGGER.info("postgresql://gleaner:hunter2@db/mlflow refused wJalrXUtnFEMI")
    assert json.loads(text.getvalue())["message"] == "postgresql://***@db/mlflow refused ***"


def test_short_values_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "a")
    assert redact("a banana at http://host/a@b") == "a banana at http://host/a@b"
    assert redact("http://alice:pw@host, https://ghp123@host and http://a:b/c@host") == (
        "http://***@host, https://***@host and http://***@host"
    )


def test_text_is_what_there_is_without_asking(small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOG_FORMAT_ENV, raising=False)
    handlers = list(LOGGER.handlers)
    with json_logging(small_campaign):
        assert LOGGER.handlers == handlers
        assert LOGGER.propagate
    monkeypatch.setenv(LOG_FORMAT_ENV, "jason")
    with pytest.raises(UserError, match="expected one of text, json"):
        is_json_logging()


@pytest.mark.integration
@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_command_that_fails_says_so_as_json_too(small_campaign: Workspace, how: str) -> None:
    small_campaign.params.write_text(small_campaign.params.read_text().replace("seed: 7", "seed: -7"))
    option, environment = (["--log", "json"], {}) if how == "option" else ([], {LOG_FORMAT_ENV: "json"})
    done = run_gleaner("run", *option, cwd=small_campaign.root, **environment)
    assert (done.returncode, done.stderr) == (2, "")
    (entry,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (entry["level"], "seed is -7" in entry["message"]) == ("error", True)


def test_time_left_follows_from_the_pace_since_the_first_sight() -> None:
    stage = StageProgress()
    assert stage.update("train 80/160  supervised 1.2", 100.0) == Progress(80, 160, None)
    assert stage.update("going on", 101.0) is None
    assert stage.update("train 100/160  supervised 1.2", 110.0) == Progress(100, 160, 30.0)
    assert stage.update("train 160/160", 140.0) == Progress(160, 160, 0.0)


def test_other_fractions_are_no_progress() -> None:
    stage = StageProgress()
    for line in ("ratio 3/2", "loss 0.5/1.0 and 3/4", "0/10", "train 0/10", "https://host/1/2"):
        assert stage.update(line, 0.0) is None
    assert stage.update("infer piece 2/5: 512 images", 0.0) == Progress(2, 5, None)


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (119, "119 s"), (720, "12 min"), (3599, "60 min"), (7500, "2 h 05 min")]
)
def test_times_as_people_say_them(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_progress_in_words() -> None:
    assert [str(Progress(*numbers)) for numbers in ((1, 5, None), (2, 5, 720.0), (5, 5, 0.0))] == [
        "1 of 5",
        "2 of 5, 12 min left",
        "5 of 5",
    ]


def test_a_key_is_fit_for_prefect_and_of_one_campaign(small_campaign: Workspace) -> None:
    renamed = small_campaign.root.with_name("Ünïts_of  Größe.2 (copy)")
    small_campaign.root.rename(renamed)
    key = campaign_key(Workspace(renamed))
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert key.startswith("n-ts-of-gr-e-2-copy-")


def alarms(workspace: Workspace, **nightly: Any) -> Params:
    params = load_params(workspace.params)
    return params.model_copy(update={"nightly": params.nightly.model_copy(update=nightly)})


@pytest.mark.integration
def test_labels_running_dry(after_two_rounds: Workspace) -> None:
    workspace = after_two_rounds
    finished, waiting, exhausted = (
        RunResult(1, outcome, "") for outcome in ("completed", "waiting_for_labels", "pool_exhausted")
    )  # type: ignore[arg-type]
    few = label_supply_warning(workspace, alarms(workspace, alert_when_batches_left=3), finished)
    assert few is not None
    assert few.endswith("Add images to the pool.")
    assert label_supply_warning(workspace, alarms(workspace, alert_when_batches_left=0), finished) is None
    assert label_supply_warning(workspace, alarms(workspace), waiting) is None
    assert "end the campaign" in (label_supply_warning(workspace, alarms(workspace), exhausted) or "")
    long_ago = (datetime.now(UTC) - timedelta(days=9)).isoformat()
    for path in [*workspace.labels.glob("*.json"), *(workspace.root / "deliveries").glob("*/delivery.json")]:
        content = files.read_json(path)
        content.update({key: long_ago for key in ("collected_at", "created_at", "delivered_at") if content.get(key)})
        files.write_json(path, content)
    assert "For 9 days" in (
        label_supply_warning(workspace, alarms(workspace, alert_after_days_without_labels=8.0), waiting) or ""
    )
    assert label_supply_warning(workspace, alarms(workspace, alert_after_days_without_labels=10.0), waiting) is None


def artifacts(key: str) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
    from prefect.client.schemas.sorting import ArtifactSort

    with get_client(sync_client=True) as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])), sort=ArtifactSort.CREATED_DESC
        )


@pytest.mark.integration
def test_the_pages_of_two_rounds_and_a_repeated_one_adds_none(
    two_rounds: Workspace, tmp_path: Path, prefect_test_server: None
) -> None:
    from prefect import flow

    from flows.monitoring.prefect_artifacts import publish_round_artifacts
    from tests.flows.copies import copy_as_own

    campaign = copy_as_own(two_rounds, tmp_path / "pages")  # other tests publish no page under its key
    key = campaign_key(campaign)
    newest = campaign.ledger(1).rename(tmp_path / "ledger")
    flow(publish_round_artifacts)(campaign, 0)
    newest.rename(campaign.ledger(1))
    for _ in range(2):
        flow(publish_round_artifacts)(campaign, 1)
    rounds, picked, report = (artifacts(f"{key}-{page}") for page in ("rounds", "picked", "report"))
    assert [len(pages) for pages in (rounds, picked, report)] == [2, 2, 2]
    assert [row["round"] for row in json.loads(rounds[0].data)] == [0, 1]
    assert [row["rank"] for row in json.loads(picked[0].data)] == [1, 2, 3]
    assert all(row["reason"] and row["image"].endswith(".png") for row in json.loads(picked[0].data))
    assert str(campaign.derived("report") / "report.html") in report[0].data
    assert "round-0001" in report[0].data
    assert rounds[0].flow_run_id is not None


@pytest.mark.integration
def test_progress_is_one_page_a_stage_and_moves(
    small_campaign: Workspace, prefect_test_server: None, heard: None
) -> None:
    from prefect import flow

    from flows.monitoring.prefect_artifacts import progress_artifact

    @flow
    def stage() -> None:
        with progress_artifact(small_campaign):
            for done in (10, 20, 30, 40):
                LOGGER.info("train %d/40  supervised 1.0", done, extra={"gleaner_line": "train"})

    stage()
    (page,) = artifacts(f"{campaign_key(small_campaign)}-progress")
    assert (page.type, float(page.data)) == ("progress", 100.0)
    assert page.description == "tiny, train: 40 of 40"


def test_a_server_that_is_away_costs_a_stage_its_page_only(
    small_campaign: Workspace, heard: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.monitoring import prefect_artifacts as pages

    asked = []

    def refuse(*_: object) -> None:
        asked.append(1)
        raise ConnectionError("refused")

    monkeypatch.setattr(pages, "create_progress_artifact", refuse)
    with pages.progress_artifact(small_campaign):
        for done in range(1, 41):
            LOGGER.info("train %d/40", done, extra={"gleaner_line": "train"})
    assert len(asked) == 1


def test_listening_leaves_no_trace(tmp_path: Path) -> None:
    before = [(list(logger.handlers), logger.propagate) for logger in (LOGGER, logging.getLogger("prefect.flow_runs"))]
    with attach_handler(logging.NullHandler()), redirect_to(logging.NullHandler()):
        assert not LOGGER.propagate
    assert before == [
        (list(logger.handlers), logger.propagate) for logger in (LOGGER, logging.getLogger("prefect.flow_runs"))
    ]
    assert os.environ.get(LOG_FORMAT_ENV) is None
