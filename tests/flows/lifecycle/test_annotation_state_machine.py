"""Whatever people do and whenever a night dies: no label is lost or doubled, no image asked for in two places."""

import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flows.annotation.batches import all_annotation_batches
from flows.annotation.leases import image_states, open_images
from flows.annotation.providers.base import ProviderError
from flows.annotation.quarantine import read_entries
from tasks.data.label_store import read_batch, read_labels
from tasks.data.schemas import LabeledImage
from tasks.runtime.errors import UserError
from tests.flows.lifecycle.fake_pipeline import (
    LEASE_DAYS,
    POOL,
    FaultInjector,
    SimulatedCrash,
    make_fake_campaign,
    params_with,
    run_fake_round,
)
from tests.flows.lifecycle.fake_provider import FakeProvider

_AnnotationKey = tuple[str, int, str, str, float | None]


def provider_key(batch: int, answer: dict[str, Any]) -> _AnnotationKey:
    """An answer in the tool, told apart from every other."""
    width_px = answer["boxes"][0]["xyxy_px"][2] - 2 if answer["boxes"] else None
    return answer["image_id"], batch, answer["annotator"], answer["status"], width_px


def stored_key(label: LabeledImage) -> _AnnotationKey:
    """The same, of one in a label batch."""
    width_px = label.boxes[0].xyxy_px[2] - 2 if label.boxes else None
    return label.image_id, label.offered_batch, label.annotator, label.status, width_px


class AnnotationStateMachine(RuleBasedStateMachine):
    """Two annotators, a clock, and nights that may be cut off."""

    @initialize(rule=st.sampled_from(["skip", "proceed"]), most=st.sampled_from([4, 100]))
    def start(self, rule: str, most: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gleaner-people-"))
        self.workspace = make_fake_campaign(self.folder / "campaign")
        self.provider = FakeProvider(self.folder / "tool.json")
        self.params = params_with(on_few_labels=rule, min_new_labels=2, max_pending_images=most, lease_days=LEASE_DAYS)
        self.width_px = 3.0
        run_fake_round(self.workspace, self.provider, self.params)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.provider.advance_days(LEASE_DAYS)  # nobody is waited for any more
            for _ in range(3):
                self.run_round()
            self.every_annotation_is_stored_or_quarantined()
            self.newest_annotation_is_current()
            shutil.rmtree(self.folder)

    @precondition(lambda self: self.provider.all_tasks())
    @rule(
        data=st.data(),
        status=st.sampled_from(["labeled", "labeled", "empty", "skipped", "wrong"]),
        who=st.sampled_from(["ann", "bob"]),
        ahead_days=st.sampled_from([0, 0, 0, 1, 4000]),
    )
    def answer(self, data: st.DataObject, status: str, who: str, ahead_days: int) -> None:
        """Of any task there ever was: new ones, changed ones, late ones of withdrawn images."""
        batch, image_id = data.draw(st.sampled_from(self.provider.all_tasks()))
        self.width_px += 0.25
        width_px = 500 + self.width_px if status == "wrong" else self.width_px
        status = "labeled" if status == "wrong" else status
        self.provider.annotate(batch, image_id, status, width_px, annotator=who, clock_skew_days=ahead_days)

    @rule(days=st.sampled_from([1, LEASE_DAYS]))
    def advance_time(self, days: float) -> None:
        self.provider.advance_days(days)

    @rule()
    def run_round(self) -> None:
        try:
            run_fake_round(self.workspace, self.provider, self.params)
        except UserError as error:
            if "usable labels are 0" not in str(error):
                raise

    @rule(effect=st.integers(1, 70))
    def run_crashing_round(self, effect: int) -> None:
        try:
            run_fake_round(self.workspace, self.provider, self.params, FaultInjector(effect))
        except (SimulatedCrash, UserError):
            return

    @rule(call=st.sampled_from(["check", "collect", "withdraw", "deliver"]), transient=st.booleans())
    def run_round_with_failing_provider(self, call: str, transient: bool) -> None:
        def refuse(name: str) -> None:
            if name == call:
                raise ProviderError("tool", f"{call} failed, expected an answer", transient=transient)

        try:
            run_fake_round(self.workspace, FakeProvider(self.provider.path, after=refuse), self.params)
        except UserError:
            return

    @invariant()
    def no_image_is_offered_twice(self) -> None:
        """The tool itself refuses to open an image in two batches; nor will it come to that."""
        if not hasattr(self, "folder"):
            return
        store = read_labels(self.workspace.labels)
        kept = {image for delivery in all_annotation_batches(self.workspace) for image in open_images(delivery, store)}
        assert self.provider.open_images() - set(store.current) <= kept
        states = image_states(all_annotation_batches(self.workspace), store)
        assert states.total() == len({image for _, image in self.provider.all_tasks()} | self._prepared())

    @invariant()
    def no_annotation_is_stored_twice(self) -> None:
        if not hasattr(self, "folder"):
            return
        batches = [read_batch(path) for path in sorted(self.workspace.labels.iterdir())]
        news = [stored_key(label) for batch in batches for label in (*batch.other_annotations, *batch.images)]
        # An older answer may count again where a newer one was taken back; then it stands in a later batch too.
        assert all(news.count(one) == 1 for one in news if one[4] is not None and not self._may_be_restored(one))

    @invariant()
    def no_timestamp_is_after_collection(self) -> None:
        if not hasattr(self, "folder"):
            return
        for batch in (read_batch(path) for path in sorted(self.workspace.labels.iterdir())):
            latest = datetime.fromisoformat(batch.collected_at) + timedelta(
                minutes=self.params.label_validation.max_clock_skew_minutes
            )
            assert all(
                datetime.fromisoformat(one.finished_at) <= latest for one in (*batch.other_annotations, *batch.images)
            )

    def every_annotation_is_stored_or_quarantined(self) -> None:
        given = read_labels(self.workspace.labels).all_annotations
        known = {stored_key(label) for labels in given.values() for label in labels}
        aside = {provider_key(entry.batch, entry.raw_annotation) for entry in read_entries(self.workspace)}
        present = {provider_key(batch, answer) for batch, answer in self.provider.current_annotations()}
        assert present <= known | aside
        assert set(given) - {"f" * 16} <= set(POOL)

    def newest_annotation_is_current(self) -> None:
        """Of each person in each batch what they said last; among those, an answer before a skip, the latest first."""
        store = read_labels(self.workspace.labels)
        for image_id in POOL:
            last = {(label.offered_batch, label.annotator): label for label in store.all_annotations.get(image_id, ())}
            if last:
                wanted = max(
                    last.values(),
                    key=lambda label: (label.status != "skipped", datetime.fromisoformat(label.finished_at)),
                )
                assert stored_key(store.current[image_id].label) == stored_key(wanted)

    def _may_be_restored(self, one: _AnnotationKey) -> bool:
        given = read_labels(self.workspace.labels).all_annotations[one[0]]
        return len({(label.offered_batch, label.annotator) for label in given}) > 1

    def _prepared(self) -> set[str]:
        return {image for delivery in all_annotation_batches(self.workspace) for image in delivery.image_ids}


TestPeople = pytest.mark.slow(AnnotationStateMachine.TestCase)
TestPeople.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
