"""Rounds that crash at any effect on the disk or at the provider: repeated, they end in the same state."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.annotation.batches import all_annotation_batches, image_states, open_images, read_annotation_batch
from flows.annotation.providers.base import ProviderError
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.lifecycle.fake_pipeline import (
    LEASE_DAYS,
    PARAMS,
    FaultInjector,
    SimulatedCrash,
    batch_images,
    make_fake_campaign,
    run_fake_round,
)
from tests.flows.lifecycle.fake_provider import FakeProvider

pytestmark = pytest.mark.integration
CALLS = ("check", "deliver", "collect", "withdraw")


@pytest.fixture(scope="module")
def busy_campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign before a round that collects late, changed, invalid and new labels, withdraws images, and delivers."""
    folder = tmp_path_factory.mktemp("busy")
    workspace, fake_provider = make_fake_campaign(folder / "campaign"), FakeProvider(folder / "tool.json")
    run_fake_round(workspace, fake_provider, PARAMS)
    ((first, *_),) = (delivery.image_ids for delivery in all_annotation_batches(workspace))
    fake_provider.annotate(1, first)
    run_fake_round(workspace, fake_provider, PARAMS)
    fake_provider.advance_days(LEASE_DAYS)
    fake_provider.annotate(1, first, width_px=15)
    newer = read_annotation_batch(workspace, 2)
    assert newer is not None
    fake_provider.annotate(2, newer.image_ids[0], status="empty")
    fake_provider.annotate(2, newer.image_ids[1], width_px=500)
    return folder


def copy_campaign(original: Path, folder: Path) -> tuple[Workspace, FakeProvider]:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    return Workspace(folder / "campaign"), FakeProvider(folder / "tool.json")


def snapshot(workspace: Workspace, fake_provider: FakeProvider) -> dict[str, Any]:
    """Return the state that must not depend on how often a run crashed."""
    kept = [path for top in ("data", "deliveries", "rounds", "derived") for path in (workspace.root / top).rglob("*")]
    digests = {str(path.relative_to(workspace.root)): files.sha256_file(path) for path in kept if path.is_file()}
    refused = {path.name for path in workspace.quarantine.glob("*")}
    return {"files": digests, "refused": refused, "provider": fake_provider.state}


def run_without_faults(original: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the state after a run without faults, and its effects by name."""
    workspace, fake_provider = copy_campaign(original, folder)
    injector = FaultInjector()
    run_fake_round(workspace, fake_provider, PARAMS, injector)
    assert read_annotation_batch(workspace, 3) is not None
    return snapshot(workspace, fake_provider), injector.effect_names


def recover(workspace: Workspace, fake_provider: FakeProvider) -> None:
    """Run the next round, and a second one where the first only completed the crashed one."""
    for _ in range(2):
        if not workspace.label_batch(2).is_file() or any(
            d.state == "prepared" for d in all_annotation_batches(workspace)
        ):
            run_fake_round(workspace, fake_provider, PARAMS)
    assert run_fake_round(workspace, fake_provider, PARAMS).outcome in ("waiting_for_labels", "completed")


def test_a_run_killed_at_any_effect_is_repeated_to_the_same_state(busy_campaign: Path, tmp_path: Path) -> None:
    expected, effects = run_without_faults(busy_campaign, tmp_path / "no_fault")
    for name in (
        "before withdraw",
        "after withdraw",
        "after deliver",
        "before batch-0002.json",
        "after batch-0002.json",
    ):
        assert name in effects
    for number in range(1, len(effects) + 1):
        workspace, fake_provider = copy_campaign(busy_campaign, tmp_path / "killed")
        with pytest.raises(SimulatedCrash):
            run_fake_round(workspace, fake_provider, PARAMS, FaultInjector(number))
        recover(workspace, fake_provider)
        assert snapshot(workspace, fake_provider) == expected, f"killed {effects[number - 1]} (effect {number})"


def test_a_run_killed_twice_is_repeated_to_the_same_state(busy_campaign: Path, tmp_path: Path) -> None:
    expected, effects = run_without_faults(busy_campaign, tmp_path / "no_fault")
    for number in range(1, len(effects) + 1, 5):
        workspace, fake_provider = copy_campaign(busy_campaign, tmp_path / "killed")
        for again in (number, number + 3):
            try:
                run_fake_round(workspace, fake_provider, PARAMS, FaultInjector(again))
            except SimulatedCrash:
                continue
        recover(workspace, fake_provider)
        assert snapshot(workspace, fake_provider) == expected, (
            f"killed {effects[number - 1]} (effect {number}), and again"
        )


def test_a_run_killed_while_it_refreshes_open_tasks_is_repeated_to_the_same_state(tmp_path: Path) -> None:
    workspace, fake_provider = make_fake_campaign(tmp_path / "a" / "campaign"), FakeProvider(tmp_path / "a/tool.json")
    run_fake_round(workspace, fake_provider, PARAMS)
    first, begun, _ = batch_images(workspace, 1)
    fake_provider.begin(1, begun)
    fake_provider.annotate(1, first)
    injector = FaultInjector()
    undisturbed = copy_campaign(tmp_path / "a", tmp_path / "no_fault")
    run_fake_round(*undisturbed, PARAMS, injector)
    expected = snapshot(*undisturbed)
    effects = injector.effect_names
    assert {"before refresh", "after refresh", "before refreshed.jsonl", "after refreshed.jsonl"} <= set(effects)
    for number in range(effects.index("before batch-0001.json"), len(effects) + 1):
        killed = copy_campaign(tmp_path / "a", tmp_path / "killed")
        with pytest.raises(SimulatedCrash):
            run_fake_round(*killed, PARAMS, FaultInjector(number))
        for _ in range(2):
            run_fake_round(*killed, PARAMS)
        assert snapshot(*killed) == expected, f"killed {effects[number - 1]} (effect {number})"


@pytest.mark.parametrize("at", [0.05, 0.3, 0.6, 0.8, 0.97])
def test_a_run_that_gets_sigkill_is_repeated_to_the_same_state(busy_campaign: Path, tmp_path: Path, at: float) -> None:
    """A real kill, of another process: no ``finally`` runs, nothing is flushed."""
    expected, effects = run_without_faults(busy_campaign, tmp_path / "no_fault")
    workspace, fake_provider = copy_campaign(busy_campaign, tmp_path / "killed")
    child = os.fork()
    if child == 0:
        run_fake_round(workspace, fake_provider, PARAMS, FaultInjector(round(at * len(effects)), _sigkill_self))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    recover(workspace, fake_provider)
    assert snapshot(workspace, fake_provider) == expected


def _sigkill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_at_call(call: str, nth: int, *, transient: bool) -> Callable[[str], None]:
    """Return a hook that fails once, at the ``nth`` such call."""
    seen: list[str] = []

    def fail(name: str) -> None:
        seen.append(name)
        if name == call and seen.count(call) == nth:
            raise ProviderError("tool", f"{call} failed", transient=transient)

    return fail


@pytest.mark.parametrize("transient", [True, False])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", CALLS)
def test_a_provider_that_fails_at_any_call_is_reported_and_the_next_run_recovers(
    busy_campaign: Path, tmp_path: Path, call: str, moment: str, transient: bool
) -> None:
    """With and without the effect of the call: a lost response looks like a lost request."""
    expected, effects = run_without_faults(busy_campaign, tmp_path / "no_fault")
    assert f"before {call}" in effects
    for nth in range(1, effects.count(f"before {call}") + 1):
        workspace, fake_provider = copy_campaign(busy_campaign, tmp_path / "failed")
        refusing = FakeProvider(fake_provider.path, **{moment: fail_at_call(call, nth, transient=transient)})
        with pytest.raises(ProviderError, match=f"{call} failed"):
            run_fake_round(workspace, refusing, PARAMS)
        recover(workspace, fake_provider)
        if call in ("check", "deliver") or (call == "collect" and transient and nth <= 2):
            assert snapshot(workspace, fake_provider) == expected
        else:  # the run continued without it; the rest came one round later
            counts = image_states(all_annotation_batches(workspace), read_labels(workspace.labels))
            assert (counts["labeled"], counts["empty"]) == (1, 1)
            assert fake_provider.open_images() <= open_image_ids(workspace)


@pytest.mark.parametrize("transient", [True, False])
def test_a_provider_whose_status_fails_is_reported(tmp_path: Path, transient: bool) -> None:
    workspace, fake_provider = make_fake_campaign(tmp_path / "campaign"), FakeProvider(tmp_path / "tool.json")
    run_fake_round(workspace, fake_provider, PARAMS)
    with pytest.raises(ProviderError, match="status failed"):
        run_fake_round(
            workspace, FakeProvider(fake_provider.path, before=fail_at_call("status", 1, transient=transient)), PARAMS
        )
    assert run_fake_round(workspace, fake_provider, PARAMS).outcome == "waiting_for_labels"


def open_image_ids(workspace: Workspace) -> set[str]:
    """Images that are not selected again."""
    store = read_labels(workspace.labels)
    return {image for delivery in all_annotation_batches(workspace) for image in open_images(delivery, store)}
