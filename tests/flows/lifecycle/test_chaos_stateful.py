"""Many nights of one campaign in any order of answers, kills, outages, full disks, moves, copies and other hosts.

What must hold: every accepted label exists once, every ledger's digests recompute, no finished stage is repeated, one
champion, which the promotion log names, and only the campaign's own folder changes anything. ``GLEANER_EXAMPLES`` sets
the number of campaigns (the usual number keeps the suite short), ``GLEANER_CHAOS_LOG`` names a file that gets the
number of nights.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flows.annotation.providers.base import ProviderError
from flows.annotation.quarantine import read_entries
from flows.registry.publish import PublishError
from flows.workspace import lock
from flows.workspace.lock import LockHeldError, LockOwner, ProcessIdentity, write_owner
from flows.workspace.owner import FolderState, OwnerError, folder_state, require_own_folder, settle
from flows.workspace.promotion_log import current_champion, first_corrupt_line
from tasks.data.label_store import read_batch, read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import LabeledImage
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.lifecycle.chaos_night import STAGE_LOG, TAGS, labels_digest, run_chaos_night
from tests.flows.lifecycle.fake_pipeline import (
    LEASE_DAYS,
    FaultInjector,
    SimulatedCrash,
    make_fake_campaign,
    params_with,
)
from tests.flows.lifecycle.fake_provider import FakeProvider
from tests.flows.lifecycle.fake_registry import FakeRegistry

EXAMPLES = int(os.environ.get("GLEANER_EXAMPLES", "6"))
COUNTS: Counter[str] = Counter()
_DAMAGE: list[dict[str, Any]] = [
    {"seconds_spent": 1e22},
    {"seconds_spent": 10**4000},
    {"seconds_spent": "soon"},
    {"annotator": "\ud800x"},
    {"annotator": "x" * 100_000},
    {"annotator": "a\x1b[2J"},
    {"finished_at": "yesterday"},
    {"finished_at": None},
    {"boxes": [{"category": "dark", "xyxy_px": [float("nan"), 1, 2, 3]}]},
    {"boxes": [{"category": "dark", "xyxy_px": [0, 0, 1e308, 1e308]}]},
    {"boxes": [{"category": "dark", "xyxy_px": [1, 1, 9, 9]}] * 3000},
    {"boxes": "none"},
]
"""Answers that were found to stop campaigns, and their kind."""


class Chaos(RuleBasedStateMachine):
    """One campaign, its annotators, and everything that befalls it."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gleaner-chaos-"))
        self.workspace = make_fake_campaign(self.folder / "campaign")
        self.provider = FakeProvider(self.folder / "tool.json")
        self.registry = FakeRegistry(self.folder / "registry.json")
        self.params = params_with(lease_days=LEASE_DAYS, max_pending_images=100)
        self.width_px, self.places = 3.0, 0
        self.damaged: set[tuple[int, str]] = set()
        self.undisturbed_night()

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        self.provider.advance_days(LEASE_DAYS)
        for _ in range(3):
            self.undisturbed_night()
        self.every_answer_is_stored_or_refused()
        shutil.rmtree(self.folder)
        if path := os.environ.get("GLEANER_CHAOS_LOG"):
            Path(path).write_text(json.dumps(dict(sorted(COUNTS.items()))) + "\n")

    # --- people -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.provider.all_tasks())
    @rule(data=st.data(), status=st.sampled_from(["labeled", "labeled", "empty", "skipped"]))
    def answer(self, data: st.DataObject, status: str) -> None:
        batch, image_id = data.draw(st.sampled_from(self.provider.all_tasks()))
        self.width_px += 0.25
        self.provider.annotate(batch, image_id, status, self.width_px)
        self.damaged.discard((batch, image_id))

    @precondition(lambda self: self.provider.all_tasks())
    @rule(data=st.data(), damage=st.sampled_from(_DAMAGE))
    def answer_that_is_poison(self, data: st.DataObject, damage: dict[str, Any]) -> None:
        batch, image_id = data.draw(st.sampled_from(self.provider.all_tasks()))
        self.width_px += 0.25
        self.provider.annotate(batch, image_id, "labeled", self.width_px, **damage)
        self.damaged.add((batch, image_id))

    @rule(days=st.sampled_from([1, LEASE_DAYS]))
    def time_passes(self, days: float) -> None:
        self.provider.advance_days(days)

    # --- nights -------------------------------------------------------------------------------------------------

    @rule()
    def undisturbed_night(self) -> None:
        self.night(FaultInjector())
        champion = current_champion(self.workspace)
        assert self.registry.state["champion"] == (champion.version if champion else None)

    @rule(effect=st.integers(1, 120))
    def killed_night(self, effect: int) -> None:
        with suppress(SimulatedCrash):
            self.night(FaultInjector(effect), "killed")

    @rule(effect=st.integers(1, 120))
    def night_with_a_full_disk(self, effect: int) -> None:
        def fill() -> None:
            raise OSError(ENOSPC, "No space left on device")

        with suppress(OSError, SimulatedCrash, UserError):
            self.night(FaultInjector(effect, fill), "full disk")

    @rule(call=st.sampled_from(["check", "collect", "withdraw", "deliver", "status"]), transient=st.booleans())
    def night_without_annotators(self, call: str, transient: bool) -> None:
        def refuse(name: str) -> None:
            if name == call:
                raise ProviderError("tool", f"{call} failed", transient=transient)

        with suppress(UserError):
            self.night(FaultInjector(), "provider away", FakeProvider(self.provider.path, after=refuse))

    @rule(name=st.sampled_from(["claim", "log_run", "set_champion"]), moment=st.sampled_from(["before", "after"]))
    def night_without_mlflow(self, name: str, moment: str) -> None:
        def refuse(what: str) -> None:
            if what == f"{moment} {name}":
                raise PublishError("MLflow", "the connection failed")

        with suppress(PublishError):
            self.night(_Calling(refuse), "MLflow away")

    def night(self, injector: FaultInjector, kind: str = "undisturbed", provider: FakeProvider | None = None) -> None:
        COUNTS["nights"] += 1
        COUNTS[kind] += 1
        try:
            with _fast_lock():
                run_chaos_night(self.workspace, provider or self.provider, self.registry, self.params, injector)
        except UserError as error:
            if "the number of valid annotations is 0" not in str(error):  # said every night until one is valid
                raise

    # --- folders and hosts --------------------------------------------------------------------------------------

    @rule()
    def folder_is_renamed(self) -> None:
        before = require_own_folder(self.workspace)
        self.places += 1
        target = self.folder / f"renamed-{self.places}"
        self.workspace.root.rename(target)
        self.workspace = Workspace(target)
        assert require_own_folder(self.workspace).owner_id == before.owner_id

    @rule(adopted=st.booleans(), cloned=st.booleans())
    def folder_is_copied(self, adopted: bool, cloned: bool) -> None:
        """The copy does nothing until it is adopted; then the original does nothing any more."""
        self.places += 1
        copy = Workspace(self.folder / f"copy-{self.places}")
        ignored = shutil.ignore_patterns("owner.json") if cloned else None
        shutil.copytree(self.workspace.root, copy.root, ignore=ignored)
        if folder_state(copy) is FolderState.NEW:  # nothing was published: it is like any new campaign
            shutil.rmtree(copy.root)
            return
        self._is_refused(copy)
        if not adopted:
            shutil.rmtree(copy.root)
            return
        original = self.workspace
        self.registry.on_call = lambda _: None
        self.registry.claim(settle(copy, None))
        self._is_refused(original)
        shutil.rmtree(original.root)
        self.workspace = copy

    @rule()
    def a_host_died_with_the_lock(self) -> None:
        dead = replace(ProcessIdentity.own(), host="elsewhere", boot="another")
        write_owner(self.workspace.lock.with_name("lock.owner"), LockOwner(dead, "2026-01-01T00:00:00+00:00"))

    @rule()
    def another_host_works(self) -> None:
        record = self.workspace.lock.with_name("lock.owner")
        other = replace(ProcessIdentity.own(), host="elsewhere", boot="another")
        write_owner(record, LockOwner(other, "2026-01-01T00:00:00+00:00"))
        before = self._outside()
        with patch.object(lock, "_is_fresh", lambda _: True), pytest.raises(LockHeldError):
            self.night(FaultInjector(), "second host")
        assert self._outside() == before
        record.unlink()

    def _is_refused(self, workspace: Workspace) -> None:
        before = self._outside(), _digests(workspace)
        COUNTS["nights"] += 1
        COUNTS["refused copy"] += 1
        with _fast_lock(), pytest.raises(OwnerError, match="gleaner adopt"):
            run_chaos_night(workspace, self.provider, self.registry, self.params, FaultInjector())
        assert (self._outside(), _digests(workspace)) == before

    def _outside(self) -> tuple[Any, Any]:
        return self.provider.state, self.registry.state

    # --- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def no_label_exists_twice(self) -> None:
        if not hasattr(self, "folder"):
            return
        batches = [read_batch(path) for path in sorted(self.workspace.labels.glob("batch-*.json"))]
        keys = Counter(_key(label) for batch in batches for label in (*batch.other_annotations, *batch.images))
        # Widths are unique, so an equal one is the same answer. Offered in two batches, an image may change back.
        repeated = {key for key, number in keys.items() if number > 1 and key[-1] is not None}
        assert all(self._was_offered_twice(key[0]) for key in repeated)

    @invariant()
    def ledgers_recompute(self) -> None:
        if not hasattr(self, "folder"):
            return
        tags = sorted(path.name for path in (self.workspace.root / TAGS).glob("round-*"))
        for tag in tags:
            number = int(tag.removeprefix("round-"))
            ledger = files.read_json(self.workspace.ledger(number))
            assert ledger["labels_sha256"] == labels_digest(self.workspace, number)
            previous = files.sha256_file(self.workspace.ledger(number - 1)) if number else None
            assert ledger["previous_ledger_sha256"] == previous
        assert tags == [f"round-{number:04d}" for number in range(len(tags))]
        assert first_corrupt_line(self.workspace) is None

    @invariant()
    def no_finished_stage_is_repeated(self) -> None:
        if not hasattr(self, "folder"):
            return
        log = self.workspace.root / STAGE_LOG
        lines = log.read_text().splitlines() if log.is_file() else []
        assert len(lines) == len(set(lines))

    @invariant()
    def one_run_a_round_counts(self) -> None:
        if not hasattr(self, "folder"):
            return
        runs = self.registry.state["runs"].values()
        counting = Counter(run["round"] for run in runs if not run["superseded"])
        assert all(number == 1 for number in counting.values())

    def every_answer_is_stored_or_refused(self) -> None:
        store = read_labels(self.workspace.labels).all_annotations
        stored = {_key(label) for labels in store.values() for label in labels}
        refused = {(entry.batch, entry.image_id) for entry in read_entries(self.workspace)}
        for batch, annotation in self.provider.current_annotations():
            key = (batch, annotation["image_id"])
            if key in self.damaged or annotation["image_id"] not in store:
                continue
            width = annotation["boxes"][0]["xyxy_px"][2] - 2 if annotation["boxes"] else None
            answer = (annotation["image_id"], batch, annotation["status"], width)
            assert answer in stored or key in refused, answer

    def _was_offered_twice(self, image_id: str) -> bool:
        return sum(image == image_id for _, image in self.provider.all_tasks()) > 1


class _Calling(FaultInjector):
    """A fault injector that only calls."""

    def __init__(self, call: Callable[[str], None]) -> None:
        super().__init__()
        self._call = call

    def __call__(self, what: str) -> None:
        self._call(what)


def _fast_lock() -> Any:
    return patch.multiple(lock, STALE_AFTER_S=0.002, HEARTBEAT_S=0.005, _LOOK_AGAIN_AFTER_S=0.0)


def _key(label: LabeledImage) -> tuple[str, int, str, float | None]:
    width = label.boxes[0].xyxy_px[2] - 2 if label.boxes else None
    return label.image_id, label.offered_batch, label.status, width


def _digests(workspace: Workspace) -> dict[str, str]:
    kept = ("data", "deliveries", "rounds", "derived", "quarantine", TAGS)
    paths = [path for top in kept for path in (workspace.root / top).rglob("*") if path.is_file()]
    return {str(path): files.sha256_file(path) for path in paths}


TestChaos = pytest.mark.integration(Chaos.TestCase)
TestChaos.settings = settings(max_examples=EXAMPLES, stateful_step_count=25, deadline=None)
