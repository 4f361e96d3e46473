"""One folder goes on with a campaign: told from its copies, clones and backups, wherever it is moved."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flows.preflight.campaign import check_owner
from flows.preflight.runner import CheckContext
from flows.workspace import git, owner
from flows.workspace.owner import (
    FolderState,
    OwnerError,
    Place,
    folder_state,
    log_adoption,
    read_owner,
    record_path,
    require_own_folder,
    settle,
)
from tasks.data.paths import Workspace


@pytest.fixture
def campaign(tmp_path: Path) -> Workspace:
    """Campaign with one published round and a record."""
    workspace = Workspace(tmp_path / "cells")
    (workspace.root / "rounds").mkdir(parents=True)
    git.init_repository(workspace.root)
    workspace.params.write_text("a: 1\n")
    git.commit(workspace, "first")
    settle(workspace, None)
    workspace.ledger(0).write_text("{}")
    return workspace


def test_a_new_campaign_gets_an_owner_of_its_own(tmp_path: Path) -> None:
    first, second = (require_own_folder(Workspace(tmp_path)).owner_id for _ in range(2))
    assert first == second
    assert len(first) == 32
    other = tmp_path / "other"
    other.mkdir()
    assert require_own_folder(Workspace(other)).owner_id != first


def rename(campaign: Workspace, target: Path) -> None:
    campaign.root.rename(target)


def copy(campaign: Workspace, target: Path) -> None:
    shutil.copytree(campaign.root, target)


def clone(campaign: Workspace, target: Path) -> None:
    shutil.copytree(campaign.root, target, ignore=shutil.ignore_patterns(".gleaner"))


def copy_and_remove(campaign: Workspace, target: Path) -> None:
    """As mv does between file systems, and as a restore with tar does."""
    copy(campaign, target)
    shutil.rmtree(campaign.root)


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (rename, FolderState.MOVED),
        (copy, FolderState.COPY),
        (clone, FolderState.UNKNOWN),
        (copy_and_remove, FolderState.COPY),
    ],
)
def test_what_became_of_the_folder_is_known(
    campaign: Workspace, tmp_path: Path, change: Callable[[Workspace, Path], None], state: FolderState
) -> None:
    before = read_owner(campaign)
    assert before is not None
    change(campaign, tmp_path / "target")
    found = Workspace(tmp_path / "target")
    assert folder_state(found) is state
    if state is FolderState.MOVED:
        assert require_own_folder(found).owner_id == before.owner_id
        assert folder_state(found) is FolderState.OWN
        assert check_owner(CheckContext(found)).state == "pass"
        return
    finding = check_owner(CheckContext(found))
    assert finding.state == "fail"
    assert "gleaner adopt" in finding.fix
    with pytest.raises(OwnerError, match="gleaner adopt --reason") as raised:
        require_own_folder(found)
    assert str(raised.value).count("\n") == 0
    if campaign.root.exists():
        assert folder_state(campaign) is FolderState.OWN


def test_a_folder_restored_in_its_old_place_is_the_same(campaign: Workspace, tmp_path: Path) -> None:
    copy_and_remove(campaign, tmp_path / "backup")
    shutil.copytree(tmp_path / "backup", campaign.root)
    assert folder_state(campaign) is FolderState.OWN


@pytest.mark.parametrize("text", ["", "{", "[]", '{"owner_id": "x"}', '{"owner_id": "x", "place": {}}', "null"])
def test_a_damaged_record_is_none(campaign: Workspace, text: str) -> None:
    record_path(campaign).write_text(text)
    assert folder_state(campaign) is FolderState.UNKNOWN


PLACE = Place("/srv/cells", 1, 2, "machine", "host")


@pytest.mark.parametrize(
    ("now", "same", "renamed"),
    [
        (PLACE, True, True),
        (replace(PLACE, host="another"), True, True),  # a container's name
        (replace(PLACE, machine=None, inode=7), True, False),  # a container with a volume of its own
        (replace(PLACE, machine="other", device=9), True, False),  # a network share
        (replace(PLACE, machine="other", inode=7), False, False),  # rsync to another machine
        (replace(PLACE, path="/srv/new"), False, True),
        (replace(PLACE, path="/srv/new", inode=7), False, False),
        (replace(PLACE, path="/srv/new", machine="other"), False, False),
    ],
)
def test_places_are_compared(now: Place, same: bool, renamed: bool) -> None:
    assert (PLACE.is_same(now), PLACE.is_renamed(now)) == (same, renamed)


def test_an_adoption_is_committed_once_however_often_it_is_repeated(campaign: Workspace) -> None:
    first = settle(campaign, None)
    for _ in range(2):
        log_adoption(campaign, first, "moved", {"found": []})
    log_adoption(campaign, settle(campaign, None), "moved again", {"found": ["x"]})
    lines = [json.loads(line) for line in (campaign.root / owner.OWNERS_LOG).read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["moved", "moved again"]
    assert lines[0]["owner_id"] == first.owner_id
    subjects = git.run_git(campaign.root, "log", "--format=%s").splitlines()
    assert subjects == ["Adopt the campaign: moved again", "Adopt the campaign: moved", "first"]
