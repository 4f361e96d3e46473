"""Champions of a real campaign: refused, promoted by force, rolled back, and killed in between."""

from pathlib import Path
from typing import Any

import pytest

import flows.registry.promotion
from flows.nightly import nightly
from flows.provenance.audit.run import run_audit
from flows.provenance.snapshot import load_snapshots
from flows.registry.promotion import PromotionRefusedError, promote, rollback, sync_alias
from flows.workspace import git
from flows.workspace.promotion_log import first_corrupt_line, read_decisions
from tasks.data.paths import Workspace
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.copies import copy_as_own
from tests.flows.small_campaign import inject_fault, mlflow_client, run_gleaner

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_test_server")]


class Killed(BaseException):
    """As SIGKILL, as far as one process can be killed and go on."""


@pytest.fixture(scope="module")
def third_round_regressed(two_rounds: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two champions, and a third model that has lost a class; nobody touches it."""
    workspace = copy_as_own(two_rounds, tmp_path_factory.mktemp("worse") / "tiny")
    inject_fault(workspace, "evaluate", "worse bright")
    assert nightly(workspace.root).outcome in ("completed", "pool_exhausted")
    (workspace.root / ".gleaner" / "fault-evaluate").unlink()
    return workspace


@pytest.fixture
def campaign(third_round_regressed: Workspace, tmp_path: Path) -> Workspace:
    return copy_as_own(third_round_regressed, tmp_path / "tiny")


def champion_version(workspace: Workspace) -> int:
    name = load_snapshots(workspace)[0].ledger["mlflow"]["model_name"]
    return int(mlflow_client(workspace).get_model_version_by_alias(name, "champion").version)


def log_entries(workspace: Workspace) -> list[tuple[str, int]]:
    return [(made.action, made.model.version) for made in read_decisions(workspace)]


def run_promote(workspace: Workspace, version: int, reason: str = "because", *, force: bool = False) -> Any:
    return promote(workspace, mlflow_client(workspace), load_params(workspace.params), version, reason, force=force)


def run_rollback(workspace: Workspace, to: int | None = None, reason: str = "it saw ghosts") -> Any:
    return rollback(workspace, mlflow_client(workspace), to, reason)


def test_a_model_that_lost_a_class_is_refused_by_night(third_round_regressed: Workspace) -> None:
    assert log_entries(third_round_regressed) == [("promote", 1), ("promote", 2), ("refuse", 3)]
    refused = read_decisions(third_round_regressed)[-1]
    assert refused.author == "gleaner run"
    assert "mAP 0.00 against the champion's 60.00" in refused.reason
    assert refused.gate is not None
    assert refused.gate["not_worse_frac"] == 0.0
    assert refused.previous_champion is not None
    assert champion_version(third_round_regressed) == refused.previous_champion.version == 2
    assert git.run_git(third_round_regressed.root, "show", "round-0002:promotions.jsonl").count("\n") == 2


def test_a_person_is_refused_too_and_force_is_written_down(campaign: Workspace) -> None:
    for _ in range(2):
        with pytest.raises(PromotionRefusedError, match="the gate refuses it"):
            run_promote(campaign, 3)
    assert log_entries(campaign)[3:] == [("refuse", 3)]
    assert champion_version(campaign) == 2
    assert run_promote(campaign, 3, "the customer asked", force=True).changed
    assert not run_promote(campaign, 3, "the customer asked", force=True).changed
    forced = read_decisions(campaign)[-1]
    assert (forced.action, forced.reason, champion_version(campaign)) == ("promote", "the customer asked", 3)
    assert forced.gate is not None
    assert forced.gate["passed"] is False
    assert forced.author == "Gleaner <gleaner@localhost>"


def test_rolling_back_restores_the_former_champion_and_all_of_it_stands_in_the_log(campaign: Workspace) -> None:
    run_promote(campaign, 3, "the customer asked", force=True)
    assert run_rollback(campaign).changed
    assert champion_version(campaign) == 2
    again = run_rollback(campaign)
    assert not again.changed
    assert "To go back further: --to VERSION" in again.message
    assert run_rollback(campaign, to=1).changed
    assert not run_rollback(campaign, to=1).changed
    assert champion_version(campaign) == 1
    assert log_entries(campaign)[3:] == [("promote", 3), ("rollback", 2), ("rollback", 1)]
    assert first_corrupt_line(campaign) is None
    assert git.run_git(campaign.root, "status", "--porcelain") == ""
    checks = run_audit(campaign, None, recompute=False, on_check=lambda _: None)
    assert [finding for check in checks for finding in check.findings] == []


def test_who_was_never_champion_is_nobody_to_go_back_to(campaign: Workspace) -> None:
    with pytest.raises(UserError, match=r"the version is 3, expected one that was champion: \[1, 2\]"):
        run_rollback(campaign, to=3)
    with pytest.raises(UserError, match=r"the version is 9, expected one of this campaign: \[1, 2, 3\]"):
        run_promote(campaign, 9)


@pytest.mark.parametrize("place", ["append_decision", "sync_alias"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_between_log_and_alias_the_same_command_ends_it(
    campaign: Workspace, place: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(flows.registry.promotion, place)

    def die(*arguments: Any, **named: Any) -> None:
        if when == "after":
            original(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(flows.registry.promotion, place, die)
        with pytest.raises(Killed):
            run_rollback(campaign)
    run_rollback(campaign)
    assert log_entries(campaign)[3:] == [("rollback", 1)]
    assert champion_version(campaign) == 1
    assert git.run_git(campaign.root, "status", "--porcelain") == ""


def test_the_alias_follows_the_log_and_never_the_other_way_round(campaign: Workspace) -> None:
    name = load_snapshots(campaign)[0].ledger["mlflow"]["model_name"]
    mlflow_client(campaign).set_registered_model_alias(name, "champion", "3")
    assert sync_alias(campaign, mlflow_client(campaign)) is None
    assert champion_version(campaign) == 2
    mlflow_client(campaign).delete_model_version(name, "2")
    warning = sync_alias(campaign, mlflow_client(campaign))
    assert warning is not None
    assert "MLflow has no version 2" in warning


def test_a_champion_whose_boxes_were_altered_cannot_be_compared_with(campaign: Workspace) -> None:
    boxes = load_snapshots(campaign)[2].cached_path("derived/evaluate/predictions.parquet")
    files.write_bytes(boxes, b"x")
    with pytest.raises(PromotionRefusedError, match="the record is altered or incomplete"):
        run_promote(campaign, 3)


def test_the_commands(campaign: Workspace) -> None:
    refused = run_gleaner("promote", "3", "--reason", "try", cwd=campaign.root)
    assert refused.returncode == 1
    assert "the gate refuses it" in refused.stderr
    back = run_gleaner("rollback", "--reason", "it saw ghosts", cwd=campaign.root)
    assert (back.returncode, back.stdout.strip()) == (0, "Version 1 is champion again: it saw ghosts."), back.stderr
    nothing = run_gleaner("rollback", "--reason", " ", cwd=campaign.root)
    assert nothing.returncode == 2
    assert "--reason: the text is empty" in nothing.stderr
