"""How a night ends when there is little to do, and what it refuses."""

import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import flows.nightly
import flows.tracking.mlflow_run
from flows.annotation.batches import read_annotation_batch
from flows.nightly import nightly, run_rounds
from flows.registry.publish import PublishError
from flows.workspace import git
from flows.workspace.rounds import last_published_round
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.annotation.test_collect_and_batches import Scripted, forget_delivery
from tests.flows.small_campaign import BUDGET, inject_fault

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_test_server")]


def logs_of(workspace: Workspace, round_number: int) -> list[str]:
    folder = workspace.root / ".gleaner" / "logs" / f"round-{round_number:04d}"
    return sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []


def test_without_labels_the_night_says_so_and_leaves(
    after_two_rounds: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.run_context.create_provider", lambda *_: Scripted([], open_images=BUDGET))
    before = git.head_commit(after_two_rounds.root)
    as_a_deployment_would: Any = str(after_two_rounds.root)
    for result in (nightly(as_a_deployment_would), run_rounds(after_two_rounds.root, 5)[-1]):
        assert (result.outcome, result.round_number) == ("waiting_for_labels", 1)
        assert "No new labels" in result.message
    assert git.head_commit(after_two_rounds.root) == before
    assert logs_of(after_two_rounds, 2) == []


def test_a_night_cut_off_before_its_delivery_only_delivers(after_two_rounds: Workspace) -> None:
    forget_delivery(after_two_rounds)
    result = nightly(after_two_rounds.root)
    assert (result.outcome, result.round_number) == ("completed", 1)
    delivered = read_annotation_batch(after_two_rounds, 2)
    assert delivered is not None
    assert delivered.state == "delivered"
    assert logs_of(after_two_rounds, 2) == []
    assert last_published_round(after_two_rounds) == 1


def test_an_exhausted_pool_ends_the_campaign(after_two_rounds: Workspace) -> None:
    forget_delivery(after_two_rounds)
    manifest = after_two_rounds.derived("handoff") / "manifest.jsonl"
    manifest.unlink()
    manifest.write_bytes(b"")
    ledger = files.read_json(after_two_rounds.ledger(1))
    files.write_json(after_two_rounds.ledger(1), {**ledger, "manifest_sha256": files.sha256_file(manifest)})
    (result,) = run_rounds(after_two_rounds.root, 3)
    assert result.outcome == "pool_exhausted"
    assert "the campaign is complete" in result.message


def test_a_failed_stage_stops_the_round_and_the_next_night_goes_on_from_it(small_campaign: Workspace) -> None:
    failing = inject_fault(small_campaign, "train", "exit 2 params.yaml: train.iterations is 0, expected more.")
    with pytest.raises(UserError, match="dvc repro --single-item train"):
        nightly(small_campaign.root)
    assert logs_of(small_campaign, 0) == ["assemble.json", "assemble.log", "prepare.json", "prepare.log", "train.log"]
    assert git.run_git(small_campaign.root, "tag") == ""
    failing.unlink()
    assert nightly(small_campaign.root).outcome == "completed"
    assert (small_campaign.root / ".gleaner" / "logs" / "round-0000" / "prepare.log").read_text().count(
        "Running stage"
    ) == 1


def test_a_campaign_without_oracle_is_refused_before_any_work(small_campaign: Workspace) -> None:
    small_campaign.oracle.unlink()
    with pytest.raises(UserError, match="gleaner init --oracle"):
        nightly(small_campaign.root)
    assert logs_of(small_campaign, 0) == []


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        (lambda small_campaign: shutil.rmtree(small_campaign.labels), "label batches are 0"),
        (
            lambda small_campaign: shutil.copy(small_campaign.label_batch(0), small_campaign.label_batch(2)),
            "batch-0001.json is missing",
        ),
        (
            lambda small_campaign: git.run_git(small_campaign.root, "checkout", "--quiet", "--detach"),
            "expected a branch",
        ),
        (lambda small_campaign: small_campaign.params.write_text("seed: [\n"), "the content is not YAML"),
    ],
)
def test_a_campaign_in_disorder_is_refused_with_words(
    small_campaign: Workspace, breaking: Callable[[Workspace], object], words: str
) -> None:
    breaking(small_campaign)
    with pytest.raises(UserError, match=words):
        nightly(small_campaign.root)
    assert logs_of(small_campaign, 0) == []


def test_an_mlflow_that_does_not_answer_is_told_and_the_next_night_goes_on(
    small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.nightly.STAGES", ())
    monkeypatch.setattr("flows.nightly.publish_round", flows.nightly.publish_round.with_options(retries=0))
    monkeypatch.setattr(flows.tracking.mlflow_run, "round_fingerprint", lambda _: "0" * 64)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(PublishError, match="when MLflow answers") as caught:
        nightly(small_campaign.root)
    assert caught.value.exit_code == 1
    assert git.run_git(small_campaign.root, "tag") == ""


@pytest.fixture
def run_log() -> Iterator[list[logging.LogRecord]]:
    """What flows and tasks write into their Prefect run logs."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep()
    loggers = [logging.getLogger(f"prefect.{kind}_runs") for kind in ("flow", "task")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def test_each_stages_lines_are_in_its_own_run_log(
    small_campaign: Workspace, run_log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.nightly.STAGES", ("prepare", "assemble"))
    monkeypatch.setattr("flows.nightly.publish_round", lambda *_: (_ for _ in ()).throw(UserError("x", "is y")))
    with pytest.raises(UserError):
        nightly(small_campaign.root)
    said = {(record.task_run_name, record.getMessage()) for record in run_log if hasattr(record, "gleaner_line")}
    assert ("prepare", "13 images, 0 set aside") in said
    assert {name for name, _ in said} == {"prepare", "assemble"}
