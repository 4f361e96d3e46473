"""Champions of a real campaign: refused, promoted by force, rolled back, and killed in between."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import flows.records.promotion
from flows import vcs
from flows.night import night
from flows.records.audit.examine import audit
from flows.records.promotion import PromotionRefusedError, follow_log, promote, rollback
from flows.records.promotion_log import broken_line, read_decisions
from flows.records.recorded import recorded_rounds
from tasks import files
from tasks.errors import UserError
from tasks.params import load_params
from tasks.paths import Workspace
from tests.flows.tiny import client_of, gleaner, trouble

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_engine")]


class Killed(BaseException):
    """As SIGKILL, as far as one process can be killed and go on."""


@pytest.fixture(scope="module")
def third_is_worse(two_rounds: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two champions, and a third model that has lost a class; nobody touches it."""
    workspace = Workspace(tmp_path_factory.mktemp("worse") / "tiny")
    shutil.copytree(two_rounds.root, workspace.root)
    trouble(workspace, "evaluate", "worse bright")
    assert night(workspace.root).outcome in ("finished", "exhausted")
    (workspace.root / ".gleaner" / "trouble-evaluate").unlink()
    return workspace


@pytest.fixture
def campaign(third_is_worse: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(third_is_worse.root, tmp_path / "tiny")
    return Workspace(tmp_path / "tiny")


def champion(workspace: Workspace) -> int:
    name = recorded_rounds(workspace)[0].ledger["mlflow"]["model_name"]
    return int(client_of(workspace).get_model_version_by_alias(name, "champion").version)


def story(workspace: Workspace) -> list[tuple[str, int]]:
    return [(made.action, made.model.version) for made in read_decisions(workspace)]


def promoted(workspace: Workspace, version: int, reason: str = "because", *, force: bool = False) -> Any:
    return promote(workspace, client_of(workspace), load_params(workspace.params), version, reason, force=force)


def rolled_back(workspace: Workspace, to: int | None = None, reason: str = "it saw ghosts") -> Any:
    return rollback(workspace, client_of(workspace), to, reason)


def test_a_model_that_lost_a_class_is_refused_by_night(third_is_worse: Workspace) -> None:
    assert story(third_is_worse) == [("promote", 1), ("promote", 2), ("refuse", 3)]
    refused = read_decisions(third_is_worse)[-1]
    assert refused.who == "gleaner night"
    assert "mAP 0.00 against the champion's 60.00" in refused.why
    assert refused.gate is not None
    assert refused.gate["not_worse_frac"] == 0.0
    assert refused.before is not None
    assert champion(third_is_worse) == refused.before.version == 2
    assert vcs.git(third_is_worse.root, "show", "round-0002:promotions.jsonl").count("\n") == 2


def test_a_person_is_refused_too_and_force_is_written_down(campaign: Workspace) -> None:
    for _ in range(2):
        with pytest.raises(PromotionRefusedError, match="the gate refuses it"):
            promoted(campaign, 3)
    assert story(campaign)[3:] == [("refuse", 3)]
    assert champion(campaign) == 2
    assert promoted(campaign, 3, "the customer asked", force=True).changed
    assert not promoted(campaign, 3, "the customer asked", force=True).changed
    forced = read_decisions(campaign)[-1]
    assert (forced.action, forced.why, champion(campaign)) == ("promote", "the customer asked", 3)
    assert forced.gate is not None
    assert forced.gate["passed"] is False
    assert forced.who == "Gleaner <gleaner@localhost>"


def test_rolling_back_restores_the_former_champion_and_all_of_it_stands_in_the_log(campaign: Workspace) -> None:
    promoted(campaign, 3, "the customer asked", force=True)
    assert rolled_back(campaign).changed
    assert champion(campaign) == 2
    again = rolled_back(campaign)
    assert not again.changed
    assert "Further back: --to VERSION" in again.message
    assert rolled_back(campaign, to=1).changed
    assert not rolled_back(campaign, to=1).changed
    assert champion(campaign) == 1
    assert story(campaign)[3:] == [("promote", 3), ("rollback", 2), ("rollback", 1)]
    assert broken_line(campaign) is None
    assert vcs.git(campaign.root, "status", "--porcelain") == ""
    checks = audit(campaign, None, recompute=False, on_check=lambda _: None)
    assert [finding for check in checks for finding in check.findings] == []


def test_who_was_never_champion_is_nobody_to_go_back_to(campaign: Workspace) -> None:
    with pytest.raises(UserError, match=r"the version is 3, expected one that was champion: \[1, 2\]"):
        rolled_back(campaign, to=3)
    with pytest.raises(UserError, match=r"the version is 9, expected one of this campaign: \[1, 2, 3\]"):
        promoted(campaign, 9)


@pytest.mark.parametrize("place", ["append_decision", "follow_log"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_between_log_and_alias_the_same_command_ends_it(
    campaign: Workspace, place: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(flows.records.promotion, place)

    def die(*arguments: Any, **named: Any) -> None:
        if when == "after":
            original(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(flows.records.promotion, place, die)
        with pytest.raises(Killed):
            rolled_back(campaign)
    rolled_back(campaign)
    assert story(campaign)[3:] == [("rollback", 1)]
    assert champion(campaign) == 1
    assert vcs.git(campaign.root, "status", "--porcelain") == ""


def test_the_alias_follows_the_log_and_never_the_other_way_round(campaign: Workspace) -> None:
    name = recorded_rounds(campaign)[0].ledger["mlflow"]["model_name"]
    client_of(campaign).set_registered_model_alias(name, "champion", "3")
    assert follow_log(campaign, client_of(campaign)) is None
    assert champion(campaign) == 2
    client_of(campaign).delete_model_version(name, "2")
    warning = follow_log(campaign, client_of(campaign))
    assert warning is not None
    assert "MLflow has no version 2" in warning


def test_a_champion_whose_boxes_were_altered_cannot_be_compared_with(campaign: Workspace) -> None:
    boxes = recorded_rounds(campaign)[2].stored("derived/evaluate/predictions.parquet")
    files.write_bytes(boxes, b"x")
    with pytest.raises(PromotionRefusedError, match="the record is not in order"):
        promoted(campaign, 3)


def test_the_commands(campaign: Workspace) -> None:
    refused = gleaner("promote", "3", "--reason", "try", cwd=campaign.root)
    assert refused.returncode == 1
    assert "the gate refuses it" in refused.stderr
    back = gleaner("rollback", "--reason", "it saw ghosts", cwd=campaign.root)
    assert (back.returncode, back.stdout.strip()) == (0, "Version 1 is champion again: it saw ghosts."), back.stderr
    nothing = gleaner("rollback", "--reason", " ", cwd=campaign.root)
    assert nothing.returncode == 2
    assert "--reason: the text is empty" in nothing.stderr
