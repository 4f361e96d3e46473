"""One campaign, killed with SIGKILL in every stage and in every side effect, against one that nobody disturbed."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL

from flows.workspace import dvc, git
from flows.workspace.rounds import read_ledger, stage_log
from tasks.data.paths import STAGES, Workspace
from tasks.storage import files
from tests.flows.cli_runner import kill_when, start_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
NAME = "chaos"


@dataclass(frozen=True)
class Point:
    """A moment at which the night is killed."""

    name: str
    reached: Callable[[Workspace], Callable[[], bool]]
    """Looked at before the night starts, asked while it runs."""


def begun(stage: str, round_number: int = 0) -> Callable[[Workspace], Callable[[], bool]]:
    """The stage starts once more."""

    def watch(workspace: Workspace) -> Callable[[], bool]:
        before = runs_of(workspace, round_number, stage)
        return lambda: runs_of(workspace, round_number, stage) > before

    return watch


def there(pattern: str) -> Callable[[Workspace], Callable[[], bool]]:
    """A file stands on the disk that did not before."""

    def watch(workspace: Workspace) -> Callable[[], bool]:
        before = set(workspace.root.glob(pattern))
        return lambda: bool(set(workspace.root.glob(pattern)) - before)

    return watch


def rows(table: str, number: int) -> Callable[[Workspace], Callable[[], bool]]:
    """MLflow's database holds so many of something."""

    def count(workspace: Workspace) -> int:
        path = workspace.root / "mlflow.db"
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.01)) as database:
                return int(database.execute(f"select count(*) from {table}").fetchone()[0])
        except sqlite3.Error:  # not there yet, or being written
            return 0

    return lambda workspace: lambda: count(workspace) >= number


def delivered(workspace: Workspace) -> Callable[[], bool]:
    record = workspace.delivery(1) / "delivery.json"
    return lambda: record.is_file() and json.loads(record.read_text())["state"] == "delivered"


IN_STAGES = [
    *(Point(f"{stage} begins", begun(stage)) for stage in STAGES),
    Point("train has written", there("derived/train/teacher.pth")),
]
AFTER_STAGES = [
    Point("MLflow run created", rows("runs", 1)),
    Point("teacher being uploaded", there("mlartifacts/**/teacher.pth")),
    Point("model version registered", rows("model_versions", 1)),
    Point("ledger written", there("rounds/round-0000.json")),
    Point("round tagged", there(".git/refs/tags/round-0000")),
    Point("delivery prepared", there("deliveries/batch-0001/delivery.json")),
    Point("delivered", delivered),
]
IN_COLLECT = [
    Point("teacher carried over", there("data/detections_at_selection/batch-0001.parquet")),
    Point("label batch written", there("data/labels/batch-0001.json")),
    Point("round 1 derived", begun("report", 1)),
]


def runs_of(workspace: Workspace, round_number: int, stage: str) -> int:
    log = stage_log(workspace, round_number, stage)
    return log.read_text().count(f"Running stage '{stage}'") if log.is_file() else 0


@pytest.fixture(scope="module")
def disturbed(
    small_campaign_template: Workspace, tmp_path_factory: pytest.TempPathFactory, prefect_test_server: None
) -> Workspace:
    """Two rounds, and a kill at each point; each call goes on where the last one was killed."""
    workspace = Workspace(tmp_path_factory.mktemp("chaos") / NAME)
    shutil.copytree(small_campaign_template.root, workspace.root)
    api_url = PREFECT_API_URL.value()
    assert api_url is not None
    in_train = [point for point in IN_STAGES if point.name.startswith("train")]
    order = sorted(IN_STAGES, key=lambda point: STAGES.index(point.name.split()[0]))
    assert len(in_train) == 2
    unfinished = STAGES  # not to ask DVC for those that are done saves most of the time
    for point in order:
        kill_when(start_run(workspace.root, api_url, unfinished), point.reached(workspace), workspace.root)
        unfinished = STAGES[STAGES.index(point.name.split()[0]) :]
    finish_stages = start_run(workspace.root, api_url)  # asks for all of them: none is repeated
    kill_when(finish_stages, AFTER_STAGES[0].reached(workspace), workspace.root)
    for point in AFTER_STAGES[1:]:  # the stages are done
        kill_when(start_run(workspace.root, api_url, ()), point.reached(workspace), workspace.root)
    for point in IN_COLLECT:
        kill_when(start_run(workspace.root, api_url), point.reached(workspace), workspace.root)
    last = start_run(workspace.root, api_url)
    last.join(300)
    assert last.exitcode == 0
    return workspace


def test_no_finished_stage_is_repeated(disturbed: Workspace) -> None:
    """Round 0: each stage begins once to be killed, train twice, and once to be finished."""
    expected = {stage: 3 if stage == "train" else 2 for stage in STAGES}
    assert {stage: runs_of(disturbed, 0, stage) for stage in STAGES} == expected


def test_the_results_are_those_of_an_undisturbed_campaign(disturbed: Workspace, two_rounds: Workspace) -> None:
    for number in (0, 1):
        one, two = (read_ledger(workspace, number) for workspace in (disturbed, two_rounds))
        assert {stage: entry["outs"] for stage, entry in one["stages"].items()} == {
            stage: entry["outs"] for stage, entry in two["stages"].items()
        }
        for key in ("selection_sha256", "manifest_sha256", "params_sha256", "metrics"):
            assert one[key] == two[key], key
        assert labels_of(disturbed, number) == labels_of(two_rounds, number)
    assert dvc.is_clean(disturbed.root)
    assert git.run_git(disturbed.root, "status", "--porcelain") == ""


def labels_of(workspace: Workspace, batch: int) -> object:
    """A label batch without the times of day."""
    images = files.read_json(workspace.label_batch(batch))["images"]
    return [{key: image[key] for key in ("image_id", "status", "boxes", "annotator")} for image in images]


def test_nothing_is_there_twice(disturbed: Workspace) -> None:
    root = disturbed.root
    assert sorted(path.name for path in disturbed.labels.iterdir()) == ["batch-0000.json", "batch-0001.json"]
    assert sorted(path.name for path in (root / "deliveries").iterdir()) == ["batch-0001", "batch-0002"]
    assert git.run_git(root, "tag").split() == ["round-0000", "round-0001"]
    offered = [files.read_json(disturbed.delivery(batch) / "delivery.json")["image_ids"] for batch in (1, 2)]
    assert not set(offered[0]) & set(offered[1])
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    (experiment,) = [entry for entry in client.search_experiments() if entry.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["round-0000", "round-0001"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    (model,) = client.search_registered_models()
    versions = client.search_model_versions(f"name = '{model.name}'")
    assert sorted(int(version.version) for version in versions) == [1, 2]
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "teacher/mAP")
        assert len(history) <= 1


def test_what_dead_nights_left_open_is_closed(disturbed: Workspace) -> None:
    assert list(disturbed.crashed_runs.glob("*")) == []
    assert not disturbed.lock.with_name("lock.owner").exists()
    with get_client(sync_client=True) as client:
        filtered = FlowRunFilter(name=FlowRunFilterName(any_=[NAME]))
        found = client.read_flow_runs(flow_run_filter=filtered, limit=200)
    kills = len(IN_STAGES) + len(AFTER_STAGES) + len(IN_COLLECT)
    states = [run.state.type for run in found if run.state is not None]
    assert len(states) == kills + 1
    assert set(states) == {StateType.CRASHED, StateType.COMPLETED}
    # the night killed once its batch was delivered has nothing left to do, and may have said so already
    assert states.count(StateType.COMPLETED) in (1, 2)


def test_the_killed_campaign_can_be_checked_out_round_by_round(disturbed: Workspace, tmp_path: Path) -> None:
    shutil.copytree(disturbed.root, tmp_path / "copy", symlinks=True)
    for tag in ("round-0000", "round-0001"):
        git.run_git(tmp_path / "copy", "checkout", "--quiet", tag)
        dvc.run_dvc(tmp_path / "copy", "checkout")
        assert dvc.is_clean(tmp_path / "copy")
