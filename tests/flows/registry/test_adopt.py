"""Moved, copied, cloned, restored: with a database of the campaign's own, and with a shared one."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from flows.preflight.probes import probe_tracking
from flows.registry.adopt import adopt, needs_adoption
from flows.run_hooks import require_owned_tracking
from flows.tracking.mlflow_owner import SUPERSEDED_TAG, connect, find_experiment
from flows.workspace import git
from flows.workspace.owner import OWNERS_LOG, OwnerError, require_own_folder
from tasks.data.paths import Workspace
from tasks.params import load_params
from tests.flows.tracking_campaign import champion, load_champion, make_tracked_campaign, publish_fake_round

pytestmark = pytest.mark.integration
PARAMS = load_params(Path(__file__).parents[3] / "params.yaml")


@pytest.fixture
def campaign(tmp_path: Path, empty_database: Path) -> Workspace:
    """Two published rounds in a database of the campaign's own."""
    workspace = make_tracked_campaign(Workspace(tmp_path / "cells"))
    shutil.copy(empty_database, workspace.root)
    for number in (0, 1):
        publish_fake_round(workspace, number)
    return workspace


@pytest.fixture(params=["sqlite", "server"])
def shared(
    request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    """Two published rounds in a database that copies share: a file, and a server on PostgreSQL."""
    shutil.copy(empty_database, tmp_path / "team.db")
    uri = request.getfixturevalue("mlflow_url") if request.param == "server" else f"sqlite:///{tmp_path / 'team.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    workspace = make_tracked_campaign(Workspace(tmp_path / "cells"))
    for number in (0, 1):
        publish_fake_round(workspace, number)
    return workspace


def statuses(workspace: Workspace) -> dict[str, tuple[str, bool]]:
    """Status of each run, and whether it is superseded, by name."""
    client = connect(workspace.root)
    assert client is not None
    experiment = find_experiment(client, git.campaign_id(workspace.root))
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return {str(run.info.run_name): (run.info.status, SUPERSEDED_TAG in run.data.tags) for run in runs}


def test_a_renamed_folder_loads_its_models_and_leaves_nothing_in_the_old_place(
    campaign: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner_id = require_own_folder(campaign).owner_id
    campaign.root.rename(tmp_path / "renamed")
    moved = Workspace(tmp_path / "renamed")
    with pytest.raises(OwnerError, match="The folder was moved") as raised:
        publish_fake_round(moved, 2)
    assert "gleaner adopt" in str(raised.value)
    monkeypatch.chdir(moved.root)
    assert "artifacts are at" in probe_tracking()["owner_problem"]
    assert not campaign.root.exists()
    adoption = adopt(moved, PARAMS, "renamed")
    assert adoption.owner.owner_id == owner_id
    assert not needs_adoption(moved)
    assert load_champion(moved) is not None
    publish_fake_round(moved, 2)
    assert champion(moved) == 3
    assert probe_tracking()["owner_problem"] == ""
    assert not campaign.root.exists()
    assert adopt(moved, PARAMS, "again").changes == []


def test_a_folder_restored_elsewhere_works_when_the_old_one_is_gone(campaign: Workspace, tmp_path: Path) -> None:
    """As docs/operations.md says: git, and an archive of mlflow.db and mlartifacts."""
    restored = Workspace(tmp_path / "restored")
    subprocess.run(["git", "clone", "--quiet", str(campaign.root), str(restored.root)], check=True)
    shutil.copy(campaign.root / "mlflow.db", restored.root)
    with pytest.raises(OwnerError, match="a clone or a restored backup"):
        require_own_folder(restored)
    with pytest.raises(OwnerError, match="mlartifacts is missing"):
        adopt(restored, PARAMS, "disk lost")
    shutil.copytree(campaign.root / "mlartifacts", restored.root / "mlartifacts")
    shutil.rmtree(campaign.root)
    changes = adopt(restored, PARAMS, "disk lost").changes
    assert any("belonged to" in change for change in changes)
    assert load_champion(restored) is not None
    publish_fake_round(restored, 2)
    assert champion(restored) == 3
    (line,) = (restored.root / OWNERS_LOG).read_text().splitlines()
    assert json.loads(line)["reason"] == "disk lost"
    assert not campaign.root.exists()


@pytest.mark.parametrize("kind", ["copy", "clone"])
def test_a_copy_moves_nothing_of_the_original_until_it_is_adopted(shared: Workspace, tmp_path: Path, kind: str) -> None:
    other = Workspace(tmp_path / "other")
    if kind == "copy":
        shutil.copytree(shared.root, other.root)
    else:
        subprocess.run(["git", "clone", "--quiet", str(shared.root), str(other.root)], check=True)
    before = statuses(shared)
    with pytest.raises(OwnerError, match="gleaner adopt"):
        publish_fake_round(other, 2)
    assert (statuses(shared), champion(shared)) == (before, 2)
    publish_fake_round(shared, 2)
    assert champion(shared) == 3
    if (shared.root / "mlartifacts").is_dir():  # a server has a place of its own for them
        shutil.copytree(shared.root / "mlartifacts", other.root / "mlartifacts", dirs_exist_ok=True)
    changes = adopt(other, PARAMS, "the machine was replaced").changes
    assert any("round 2, which are not here" in change for change in changes)
    assert statuses(shared)["round-0002"] == ("FINISHED", True)
    publish_fake_round(other, 2)
    assert champion(other) == 4
    with pytest.raises(OwnerError, match=f"it belongs to {other.root}"):
        require_owned_tracking(shared)
    with pytest.raises(OwnerError, match=f"it belongs to {other.root}"):
        publish_fake_round(shared, 3)
    assert champion(shared) == 4


@pytest.mark.parametrize("rounds_behind", [1, 2])
def test_an_older_backup_in_the_same_place_is_noticed(shared: Workspace, tmp_path: Path, rounds_behind: int) -> None:
    shutil.copytree(shared.root, tmp_path / "backup")
    lost = range(2, 2 + rounds_behind)
    for number in lost:
        publish_fake_round(shared, number)
    shutil.rmtree(shared.root)
    shutil.copytree(tmp_path / "backup", shared.root)
    with pytest.raises(
        OwnerError, match=r"it has rounds? 2(, 3)? of another copy of this folder, whose last is round 1"
    ):
        require_owned_tracking(shared)
    adopt(shared, PARAMS, "restored")
    require_owned_tracking(shared)
    assert {statuses(shared)[git.round_tag(number)] for number in lost} == {("FINISHED", True)}


def test_a_run_killed_before_its_ledger_goes_on(shared: Workspace) -> None:
    publish_fake_round(shared, 2, killed_before_ledger=True)
    require_owned_tracking(shared)


def test_two_copies_that_look_alike_are_noticed_when_the_second_publishes(shared: Workspace, tmp_path: Path) -> None:
    """As two starts of one virtual machine: the same path, machine and owner id, and both publish."""
    shutil.copytree(shared.root, tmp_path / "twin")
    publish_fake_round(shared, 2)
    shutil.rmtree(shared.root)
    shutil.copytree(tmp_path / "twin", shared.root)
    with pytest.raises(OwnerError, match="it has round 2 of another copy of this folder"):
        publish_fake_round(shared, 2)


def test_a_service_that_is_away_delays_the_question(shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    require_owned_tracking(shared)
