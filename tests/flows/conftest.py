"""A real Prefect engine, and tiny campaigns made by the real ``gleaner init``."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# Prefect reads these when it is imported. Without the two services there are no 503s under parallel writes;
# no test here reads task runs back.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED", "false")
# No flow uses a block; to look for them, the server would import every installed collection.
os.environ.setdefault("PREFECT_SERVER_REGISTER_BLOCKS_ON_START", "false")
os.environ.setdefault("PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION", "false")
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")  # tasks are called alone here
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Thousands of processes would compile Gleaner's modules, a third of a second each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from filelock import FileLock

from tasks.data.paths import Workspace
from tests.flows.small_campaign import make_small_campaign


@pytest.fixture(scope="session", autouse=True)
def isolated_git_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Git knows nobody but who the test says: not the configuration of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path_factory.mktemp("git") / "config"))
        patch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
        for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
            patch.delenv(name, raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def prefect_test_server(isolated_git_config: None) -> Iterator[None]:
    """One temporary Prefect server for all tests; without heartbeats, which cost a second a flow."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture(scope="session")
def shared_prefect_server(prefect_test_server: None) -> dict[str, str]:
    """The environment of commands that need no server of their own, whose start takes 12 s of a core."""
    from prefect.settings import PREFECT_API_URL

    api_url = PREFECT_API_URL.value()
    assert api_url is not None
    return {"PREFECT_API_URL": api_url}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database of MLflow: its tables take seconds to make."""

    def build(path: Path) -> None:
        from mlflow import MlflowClient

        from flows.tracking.mlflow_run import silence_mlflow

        silence_mlflow()
        MlflowClient(f"sqlite:///{path}").search_experiments()

    return _build_once(tmp_path_factory, "mlflow.db", build)


@pytest.fixture(scope="session")
def small_campaign_template(
    tmp_path_factory: pytest.TempPathFactory, isolated_git_config: None, empty_database: Path
) -> Workspace:
    """A new campaign nobody touches, with an empty database of MLflow."""
    workspace = make_small_campaign(tmp_path_factory.mktemp("template"))
    shutil.copy(empty_database, workspace.root)
    return workspace


@pytest.fixture(scope="session")
def two_rounds(
    tmp_path_factory: pytest.TempPathFactory, small_campaign_template: Workspace, prefect_test_server: None
) -> Workspace:
    """A campaign after two real nights, batch 2 delivered; nobody touches it either."""
    from flows.nightly import run_rounds

    def build(root: Path) -> None:
        shutil.copytree(small_campaign_template.root, root)
        results = run_rounds(root, 2)
        assert [result.outcome for result in results] == ["completed", "completed"]

    built = _build_once(tmp_path_factory, "two-rounds", build)
    return _copy(Workspace(built), tmp_path_factory.mktemp("two_rounds") / "two-rounds")


def _build_once(tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """Build a folder or file in the first of the test processes that asks; the others wait, and copy it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    root, finished = shared / "built" / name, shared / f"{name}.finished"
    with FileLock(shared / f"{name}.lock"):
        if not finished.exists():
            root.parent.mkdir(exist_ok=True)
            build(root)
            finished.touch()
    return root


@pytest.fixture
def small_campaign(small_campaign_template: Workspace, tmp_path: Path) -> Workspace:
    """A new campaign of one's own."""
    return _copy(small_campaign_template, tmp_path / "tiny")


@pytest.fixture
def after_two_rounds(two_rounds: Workspace, tmp_path: Path) -> Workspace:
    """A copy of ``two_rounds`` of one's own."""
    return _copy(two_rounds, tmp_path / "tiny")


def _copy(original: Workspace, root: Path) -> Workspace:
    from tests.flows.copies import copy_as_own  # takes seconds to import

    return copy_as_own(original, root)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Where pictures for people go: GLEANER_TEST_ARTIFACTS, or the test's own folder."""
    folder = Path(os.environ.get("GLEANER_TEST_ARTIFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
