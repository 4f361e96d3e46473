"""A run is opened once: by the command line, whose lock and context the flow takes over, or by the flow itself."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from flows import run_context
from flows.preflight.checks import CHECKS
from flows.preflight.runner import CheckContext, run_checks
from flows.run_context import open_run, prepared_run
from flows.workspace.lock import LockHeldError
from flows.workspace.run_lock import run_lock
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError


@pytest.fixture
def num_checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the quick checks run."""
    calls = []
    real = run_context.require_ready

    def counted(context: CheckContext) -> list[str]:
        calls.append(1)
        return real(context)

    monkeypatch.setattr(run_context, "require_ready", counted)
    return calls


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages of the notifications that are sent."""
    messages: list[str] = []
    monkeypatch.setattr(
        "flows.monitoring.notifications.notify", lambda notification: messages.append(notification.message)
    )
    return messages


def is_locked(workspace: Workspace) -> bool:
    try:
        with run_lock(workspace):
            return False
    except LockHeldError:
        return True


def test_the_flow_takes_over_lock_and_context_of_the_command_line(
    small_campaign: Workspace, num_checks: list[int]
) -> None:
    with prepared_run(small_campaign.root) as workspace:
        assert workspace == small_campaign
        assert is_locked(small_campaign)
        with open_run(small_campaign.root) as context:
            assert is_locked(small_campaign)
            assert context.workspace == small_campaign
        assert not is_locked(small_campaign)  # with the flow, not with the command
        with open_run(small_campaign.root) as second:  # the next round of the same command
            assert second is not context
            assert is_locked(small_campaign)
    assert not is_locked(small_campaign)
    assert len(num_checks) == 2


def test_a_flow_without_a_command_line_opens_its_run_itself(small_campaign: Workspace, num_checks: list[int]) -> None:
    with open_run(small_campaign.root) as context:
        assert is_locked(small_campaign)
        assert context.params.classes
    assert not is_locked(small_campaign)
    assert len(num_checks) == 1


def test_a_run_that_no_flow_takes_over_is_closed(small_campaign: Workspace, sent: list[str]) -> None:
    with pytest.raises(UserError, match="no server"), prepared_run(small_campaign.root):
        raise UserError("Prefect", "there is no server")
    assert not is_locked(small_campaign)
    assert len(sent) == 1


@pytest.mark.parametrize("prepared", [True, False])
def test_a_failure_is_notified_once(small_campaign: Workspace, sent: list[str], prepared: bool) -> None:
    command = prepared_run(small_campaign.root) if prepared else nullcontext()
    with pytest.raises(UserError, match="it failed"), command, open_run(small_campaign.root):
        raise UserError("train", "it failed")
    assert sent == ["train: it failed."]


def test_a_failed_check_is_notified_and_leaves_the_campaign_unlocked(
    small_campaign: Workspace, sent: list[str]
) -> None:
    small_campaign.params.write_text(small_campaign.params.read_text().replace("seed: 7", "seed: -7"))
    with pytest.raises(UserError, match="seed is -7"), prepared_run(small_campaign.root):
        raise AssertionError("the block must not begin")
    assert len(sent) == 1
    assert "seed is -7" in sent[0]
    assert not is_locked(small_campaign)


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


def test_no_quick_check_changes_a_file(small_campaign: Workspace) -> None:
    (small_campaign.root / ".git" / "index.lock").touch()
    before = contents(small_campaign.root)
    run_checks(CheckContext(small_campaign), [check for check in CHECKS if check.quick])
    assert contents(small_campaign.root) == before
