"""Which folder MLflow's experiment of a campaign belongs to, and where its artifacts are.

The experiment has the owner id of one folder as a tag. Another folder of the same campaign may read it, and changes
nothing until a person has said ``gleaner adopt``. Where the artifacts lie in the campaign's folder, MLflow's database
holds their absolute address, which is wrong once the folder is another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run, ViewType
from mlflow.exceptions import MlflowException

from flows.runtime.process_env import tracking_uri
from flows.workspace import git
from flows.workspace.owner import ADOPT_HINT, Owner, OwnerError
from flows.workspace.rounds import all_ledgers, last_published_round
from tasks.data.paths import Workspace

CAMPAIGN_TAG = "gleaner.campaign"
OWNER_TAG, OWNER_PLACE_TAG = "gleaner.owner", "gleaner.owner_place"
ROUND_NUMBER_TAG = "gleaner.round"
SUPERSEDED_TAG = "gleaner.superseded_by"
GIT_REVISION_TAG = "gleaner.git_revision"
"""The commit that holds the derivation of a run's round; made before the run."""
ARTIFACTS_FOLDER = "mlartifacts"
_LOCATION_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's database that hold an absolute address of an artifact."""


@dataclass(frozen=True)
class TrackedOwner:
    """Whose experiment MLflow has."""

    owner_id: str | None
    """None where no folder has claimed it yet."""
    place: str


def has_own_artifacts(root: Path) -> bool:
    """Tell whether artifacts lie in the campaign's folder; a server has a place of its own for them."""
    return not tracking_uri(root).startswith(("http:", "https:", "databricks"))


def artifact_location(root: Path) -> str:
    """Return the address of the artifacts in the campaign's folder."""
    return (root.resolve() / ARTIFACTS_FOLDER).as_uri()


def connect(root: Path) -> MlflowClient | None:
    """Return a client of the campaign's MLflow; None where its own database has not been made yet."""
    uri = tracking_uri(root)
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return None
    return MlflowClient(uri)


def find_experiment(client: MlflowClient, campaign: str) -> Experiment | None:
    """Find the campaign's experiment by its tag, an active one before a deleted one."""
    found = client.search_experiments(ViewType.ALL, filter_string=f"tags.`{CAMPAIGN_TAG}` = '{campaign}'")
    return min(found, key=lambda one: one.lifecycle_stage != LifecycleStage.ACTIVE, default=None)


def require_tracked_owner(workspace: Workspace, client: MlflowClient, owner: Owner) -> None:
    """Refuse to go on where MLflow says that another folder does, or that this one is behind.

    Raises:
        OwnerError: the experiment belongs to another folder, has rounds that this folder does not know, or keeps its
            artifacts where this folder was before.
    """
    experiment = find_experiment(client, git.campaign_id(workspace.root))
    if experiment is None:
        return
    where = f"MLflow experiment {experiment.name}"
    tracked = tracked_owner(experiment)
    newer = unknown_runs(workspace, client, experiment)
    if tracked.owner_id not in (None, owner.owner_id):
        rounds = f", with {describe_rounds(newer)} not known here" if newer else ""
        raise OwnerError(where, f"it belongs to {tracked.place}{rounds}, expected {owner.place}", ADOPT_HINT)
    if newer:
        last = last_published_round(workspace)
        problem = f"it has {describe_rounds(newer)} of another copy of this folder, whose last is round {last}"
        raise OwnerError(where, f"{problem}, expected only runs of its own", ADOPT_HINT)
    if is_elsewhere(workspace.root, experiment):
        problem = f"its artifacts are at {experiment.artifact_location}, expected {artifact_location(workspace.root)}"
        fix = "The folder was moved. To enter its new place in MLflow: gleaner adopt --reason TEXT"
        raise OwnerError(where, problem, fix)


def _is_unfinished_here(workspace: Workspace, run: Run, next_round: int) -> bool:
    """Tell whether a finished run is of this folder, whose process was killed before it tagged the round.

    The commit of the derivation comes before the run, so this folder has it; an older backup has not.
    """
    revision = run.data.tags.get(GIT_REVISION_TAG, "")
    return round_number(run) == next_round and git.is_ancestor(workspace.root, revision, "HEAD")


def tracked_owner(experiment: Experiment) -> TrackedOwner:
    """Read the owner off the experiment's tags."""
    return TrackedOwner(experiment.tags.get(OWNER_TAG), experiment.tags.get(OWNER_PLACE_TAG, "another folder"))


def unknown_runs(workspace: Workspace, client: MlflowClient, experiment: Experiment) -> list[Run]:
    """Return finished runs of rounds that this folder has not computed, and no other run supersedes."""
    known = {ledger.get("mlflow", {}).get("run_id") for ledger in all_ledgers(workspace)}
    last = last_published_round(workspace)
    runs = _all_runs(client, experiment, "attributes.status = 'FINISHED'")
    return [
        run
        for run in runs
        if round_number(run) >= 0
        and run.info.run_id not in known
        and SUPERSEDED_TAG not in run.data.tags
        and not _is_unfinished_here(workspace, run, last + 1)
    ]


def is_elsewhere(root: Path, experiment: Experiment) -> bool:
    """Tell whether the experiment's artifacts belong into the campaign's folder and are recorded in another."""
    return has_own_artifacts(root) and experiment.artifact_location.rstrip("/") != artifact_location(root)


def claim(client: MlflowClient, experiment_id: str, owner: Owner) -> None:
    """Enter the folder as owner of the experiment."""
    client.set_experiment_tag(experiment_id, OWNER_TAG, owner.owner_id)
    client.set_experiment_tag(experiment_id, OWNER_PLACE_TAG, str(owner.place))


def claim_model(client: MlflowClient, model_name: str, owner: Owner) -> None:
    """Enter the folder as owner of the registered model, whose aliases it sets from now on."""
    try:
        client.set_registered_model_tag(model_name, OWNER_TAG, owner.owner_id)
        client.set_registered_model_tag(model_name, OWNER_PLACE_TAG, str(owner.place))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def require_artifacts(root: Path, experiment: Experiment) -> None:
    """Refuse to enter this folder as the place of artifacts where they have not come along.

    Raises:
        OwnerError: the artifacts are not in this folder.
    """
    if not (root / ARTIFACTS_FOLDER).is_dir():
        place = _local_path(experiment.artifact_location)
        fix = f"Bring {ARTIFACTS_FOLDER} along from {place} or from the backup, then run it again."
        raise OwnerError(root, f"{ARTIFACTS_FOLDER} is missing, expected the folder of MLflow's artifacts", fix)


def rewrite_artifact_locations(root: Path, experiment: Experiment) -> int:
    """Replace the former folder in every address of an artifact in MLflow's database; all or none.

    Artifacts are not moved: they have come along with the folder.

    Args:
        root: the campaign's folder now.
        experiment: of the campaign, with the address of its artifacts before.

    Returns:
        The number of addresses that were changed.
    """
    former, now = experiment.artifact_location.rstrip("/"), artifact_location(root)
    with _database(root) as connection:
        changed = 0
        for table, column in _LOCATION_COLUMNS:
            for old, new in ((former, now), (_local_path(former), _local_path(now))):
                statement = sqlalchemy.text(
                    f"UPDATE {table} SET {column} = :new || substr({column}, :rest) "
                    f"WHERE {column} = :old OR substr({column}, 1, :length) = :prefix"
                )
                values = {"old": old, "new": new, "prefix": f"{old}/", "length": len(old) + 1, "rest": len(old) + 1}
                changed += connection.execute(statement, values).rowcount
        return changed


@contextmanager
def _database(root: Path) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine(tracking_uri(root))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _local_path(uri: str) -> str:
    return unquote(urlsplit(uri).path) if uri.startswith("file:") else uri


def _all_runs(client: MlflowClient, experiment: Experiment, filter_string: str) -> list[Run]:
    runs: list[Run] = []
    token: str | None = None
    while token is None or token:
        page = client.search_runs([experiment.experiment_id], filter_string, page_token=token)
        runs += page
        token = page.token or ""
    return runs


def round_number(run: Run) -> int:
    """Return the number of a run's round; -1 for a run that is none of a round."""
    text = run.data.tags.get(ROUND_NUMBER_TAG, "")
    return int(text) if text.isdecimal() else -1


def describe_rounds(runs: list[Run]) -> str:
    """Name the rounds of runs: ``round 4`` or ``rounds 4, 5``."""
    numbers = sorted({round_number(run) for run in runs})
    return f"round{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
