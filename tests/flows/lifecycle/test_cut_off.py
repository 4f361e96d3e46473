"""Nights cut off at every effect they have, on the disk and at the provider; repeated, all ends the same."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.labels.deliveries import all_deliveries, read_delivery
from flows.labels.leases import image_states, open_images
from flows.labels.providers.base import ProviderError
from tasks import files
from tasks.label_store import read_labels
from tasks.paths import Workspace
from tests.flows.lifecycle.label_tool import LabelTool
from tests.flows.lifecycle.plain_nights import LEASE_DAYS, PARAMS, Fuse, Killed, make_plain_campaign, plain_night

pytestmark = pytest.mark.slow
CALLS = ("check", "deliver", "collect", "withdraw")


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign before a night that collects late, changed, refused and new labels, takes images back, and offers."""
    folder = tmp_path_factory.mktemp("eventful")
    workspace, tool = make_plain_campaign(folder / "campaign"), LabelTool(folder / "tool.json")
    plain_night(workspace, tool, PARAMS)
    ((first, *_),) = (delivery.image_ids for delivery in all_deliveries(workspace))
    tool.answer(1, first)
    plain_night(workspace, tool, PARAMS)
    tool.wait(LEASE_DAYS)
    tool.answer(1, first, width_px=15)
    newer = read_delivery(workspace, 2)
    assert newer is not None
    tool.answer(2, newer.image_ids[0], status="empty")
    tool.answer(2, newer.image_ids[1], width_px=500)
    return folder


def copied(original: Path, folder: Path) -> tuple[Workspace, LabelTool]:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    return Workspace(folder / "campaign"), LabelTool(folder / "tool.json")


def everything(workspace: Workspace, tool: LabelTool) -> dict[str, Any]:
    """What must not depend on how often a night was cut off."""
    kept = [path for top in ("data", "deliveries", "rounds", "derived") for path in (workspace.root / top).rglob("*")]
    digests = {str(path.relative_to(workspace.root)): files.sha256_file(path) for path in kept if path.is_file()}
    refused = {path.name for path in workspace.quarantine.glob("*")}
    return {"files": digests, "refused": refused, "tool": tool.content}


def undisturbed(eventful: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What one good night leads to, and its effects by name."""
    workspace, tool = copied(eventful, folder)
    fuse = Fuse()
    plain_night(workspace, tool, PARAMS, fuse)
    assert read_delivery(workspace, 3) is not None
    return everything(workspace, tool), fuse.seen


def recover(workspace: Workspace, tool: LabelTool) -> None:
    """The next night; a second one where the first only finished what was cut off."""
    for _ in range(2):
        if not workspace.label_batch(2).is_file() or any(d.state == "prepared" for d in all_deliveries(workspace)):
            plain_night(workspace, tool, PARAMS)
    assert plain_night(workspace, tool, PARAMS).outcome in ("waiting", "finished")


def test_a_night_killed_at_any_effect_is_repeated_to_the_same_end(eventful: Path, tmp_path: Path) -> None:
    wanted, effects = undisturbed(eventful, tmp_path / "good")
    for name in (
        "before withdraw",
        "after withdraw",
        "after deliver",
        "before batch-0002.json",
        "after batch-0002.json",
    ):
        assert name in effects
    for number in range(1, len(effects) + 1):
        workspace, tool = copied(eventful, tmp_path / "killed")
        with pytest.raises(Killed):
            plain_night(workspace, tool, PARAMS, Fuse(number))
        recover(workspace, tool)
        assert everything(workspace, tool) == wanted, f"killed {effects[number - 1]} (effect {number})"


def test_a_night_killed_twice_is_repeated_to_the_same_end(eventful: Path, tmp_path: Path) -> None:
    wanted, effects = undisturbed(eventful, tmp_path / "good")
    for number in range(1, len(effects) + 1, 5):
        workspace, tool = copied(eventful, tmp_path / "killed")
        for again in (number, number + 3):
            try:
                plain_night(workspace, tool, PARAMS, Fuse(again))
            except Killed:
                continue
        recover(workspace, tool)
        assert everything(workspace, tool) == wanted, f"killed {effects[number - 1]} (effect {number}), and again"


@pytest.mark.parametrize("at", [0.05, 0.3, 0.6, 0.8, 0.97])
def test_a_night_that_gets_sigkill_is_repeated_to_the_same_end(eventful: Path, tmp_path: Path, at: float) -> None:
    """No ``finally`` runs, nothing is flushed: the real thing, in a process of its own."""
    wanted, effects = undisturbed(eventful, tmp_path / "good")
    workspace, tool = copied(eventful, tmp_path / "killed")
    child = os.fork()
    if child == 0:
        plain_night(workspace, tool, PARAMS, Fuse(round(at * len(effects)), _end_at_once))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    recover(workspace, tool)
    assert everything(workspace, tool) == wanted


def _end_at_once() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing(call: str, nth: int, *, transient: bool) -> Callable[[str], None]:
    """Fails at the ``nth`` such call, once."""
    seen: list[str] = []

    def fail(name: str) -> None:
        seen.append(name)
        if name == call and seen.count(call) == nth:
            raise ProviderError("tool", f"{call} failed, expected an answer", transient=transient)

    return fail


@pytest.mark.parametrize("transient", [True, False])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", CALLS)
def test_a_provider_that_fails_at_any_call_is_told_and_the_next_night_recovers(
    eventful: Path, tmp_path: Path, call: str, moment: str, transient: bool
) -> None:
    """Whether or not the call had its effect: a lost answer looks like a lost question."""
    wanted, effects = undisturbed(eventful, tmp_path / "good")
    assert f"before {call}" in effects
    for nth in range(1, effects.count(f"before {call}") + 1):
        workspace, tool = copied(eventful, tmp_path / "failed")
        refusing = LabelTool(tool.path, **{moment: failing(call, nth, transient=transient)})
        with pytest.raises(ProviderError, match=f"{call} failed"):
            plain_night(workspace, refusing, PARAMS)
        recover(workspace, tool)
        if call in ("check", "deliver") or (call == "collect" and transient and nth <= 2):
            assert everything(workspace, tool) == wanted
        else:  # the night went on with what it had; the rest came a round later
            counts = image_states(all_deliveries(workspace), read_labels(workspace.labels))
            assert (counts["labeled"], counts["empty"]) == (1, 1)
            assert tool.open_images() <= open_in_the_books(workspace)


@pytest.mark.parametrize("transient", [True, False])
def test_a_provider_that_cannot_count_is_told_too(tmp_path: Path, transient: bool) -> None:
    workspace, tool = make_plain_campaign(tmp_path / "campaign"), LabelTool(tmp_path / "tool.json")
    plain_night(workspace, tool, PARAMS)
    with pytest.raises(ProviderError, match="status failed"):
        plain_night(workspace, LabelTool(tool.path, before=failing("status", 1, transient=transient)), PARAMS)
    assert plain_night(workspace, tool, PARAMS).outcome == "waiting"


def open_in_the_books(workspace: Workspace) -> set[str]:
    """Images that no round will pick."""
    store = read_labels(workspace.labels)
    return {image for delivery in all_deliveries(workspace) for image in open_images(delivery, store)}
