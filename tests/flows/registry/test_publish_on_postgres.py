"""A run whose names and texts strain every limit, with MLflow and Prefect on PostgreSQL: SQLite takes any length."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from flows.workspace import git
from flows.workspace.rounds import read_ledger
from flows.workspace.scaffold import create_workspace
from tasks.data.label_store import read_batch
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows import small_campaign
from tests.flows.small_campaign import fake_heavy_stages, make_source, run_gleaner, workspace_config
from tests.services import call_prefect_api

pytestmark = [pytest.mark.e2e, pytest.mark.services, pytest.mark.timeout(2400)]
CLASSES = ("a|b ![c](http://outside/c.png) <img src=x> `d` " + "é" * 52, "\u202e../dark//\x7f\u2028")
"""A class name of the greatest length, with markup; one with letters that are not printed, and parts of a path."""
NUM_ANNOTATORS = 5000
STRANGE_ANNOTATORS = (
    "![pixel](http://outside/pixel.png)",
    "[click](javascript:alert(1))",
    "<script>alert(1)</script>",
    "a | b || c\n| d | e |",
    "\x00\x1b]0;title\x07\u202e",
    "line\u2028separator\r\n# heading",
    "x" * 100_000,
)
"""Names as they may lie in label batches from before there was a limit for them."""
MAX_DESCRIPTION, MAX_TAG, MAX_PARAM, MAX_METRIC_NAME = 5000, 5000, 8000, 250
"""Widths of columns in MLflow's tables (``mlflow/store``)."""


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A campaign in a folder with a name of the greatest length, whose seed images thousands of people have labeled."""
    monkeypatch.setattr(small_campaign, "CLASSES", CLASSES)
    create_workspace(tmp_path / "tiny", workspace_config(make_source(tmp_path / "source")))
    workspace = Workspace((tmp_path / "tiny").rename(tmp_path / ("Zellen_" + "n" * 248)))
    fake_heavy_stages(workspace)
    path = workspace.label_batch(0)
    batch = read_batch(path)
    answer = batch.images[0]
    names = [f"annotator-{number:04d}-{'n' * 180}@a.org" for number in range(NUM_ANNOTATORS - len(STRANGE_ANNOTATORS))]
    others = tuple(
        answer.model_copy(update={"annotator": name}) for name in (*names, *STRANGE_ANNOTATORS) for _ in "ab"
    )
    files.write_json(path, batch.model_copy(update={"other_annotations": others}).model_dump(mode="json"))
    git.commit(workspace, "Many annotators")
    return workspace


def test_a_round_of_5000_annotators_is_published(campaign: Workspace, mlflow_url: str, prefect_url: str) -> None:
    services = {"MLFLOW_TRACKING_URI": mlflow_url, "PREFECT_API_URL": f"{prefect_url}/api"}
    done = run_gleaner("run", cwd=campaign.root, timeout_s=900, **services)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert git.has_tag(campaign.root, "round-0000")
    assert "An artifact was not made" not in done.stdout + done.stderr
    ledger = read_ledger(campaign, 0)
    assert len(ledger["labels"][0]["annotators"]) > NUM_ANNOTATORS  # who imported the seed set is one more
    client = MlflowClient(mlflow_url)
    run = client.get_run(ledger["mlflow"]["run_id"])
    version = client.get_model_version(ledger["mlflow"]["model_name"], str(ledger["mlflow"]["model_version"]))
    assert run.info.status == "FINISHED"
    assert_within_limits(run, version)
    assert run.data.metrics["teacher/mAP"] == pytest.approx(ledger["metrics"]["teacher"]["mAP"])
    assert run.data.params["classes"].count("http://outside/c.png") == 1
    for text in (version.description, run.data.tags["mlflow.note.content"]):
        assert_description_is_whole(text, len(ledger["labels"][0]["annotators"]))
    assert_prefect_has_the_pages(campaign, prefect_url)
    again = run_gleaner("run", cwd=campaign.root, timeout_s=900, **services)
    assert again.returncode == 0, again.stdout + again.stderr


def assert_within_limits(run: Any, version: ModelVersion) -> None:
    """MLflow has the whole of each text, within the width of its column."""
    assert all(len(value) <= MAX_TAG for tags in (run.data.tags, version.tags) for value in tags.values())
    assert all(len(value) <= MAX_PARAM for value in run.data.params.values())
    assert all(len(name) <= MAX_METRIC_NAME for name in run.data.metrics)
    assert len(version.description) <= MAX_DESCRIPTION


def assert_description_is_whole(text: str, num_annotators: int) -> None:
    """A table of two columns in each row, that names some annotators and counts the others; nothing is markup."""
    rows = re.findall(r"^\|(.*)\|$", text, flags=re.MULTILINE)
    assert all(len(re.split(r"(?<!\\)\|", row)) == 2 for row in rows)
    assert len(rows) == text.count("\n|") > 10
    (annotators,) = (row for row in rows if row.lstrip().startswith("Annotators"))
    others = re.search(r"and (\d+) others", annotators)
    assert others is not None
    named = len(re.findall(r" \(\d+\),", annotators))
    assert named + int(others[1]) == num_annotators
    assert list(_links(text)) == ["report.html", "Report"] or set(_links(text)) == {"report.html", "Report"}
    assert "<" not in text
    assert text.replace("\n", "").isprintable()


def _links(text: str) -> Iterator[str]:
    return (match[1] for match in re.finditer(r"(?<!\\)\[([^\]]*[^\\\]])\]\(", text))


def assert_prefect_has_the_pages(campaign: Workspace, prefect_url: str) -> None:
    """The pages of the campaign are there, by keys and with texts that the server took."""
    prefix = git.campaign_key(campaign)
    found = call_prefect_api(prefect_url, "artifacts/latest/filter", artifacts={"key": {"like_": f"{prefix}%"}})
    assert {f"{prefix}-rounds", f"{prefix}-picked", f"{prefix}-report"} <= {page["key"] for page in found}
    (report,) = (page for page in found if page["key"] == f"{prefix}-report")
    assert "![" not in report["data"]
