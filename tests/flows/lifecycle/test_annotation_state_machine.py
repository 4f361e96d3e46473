"""In any order of annotations, rounds and crashes: no label is lost or stored twice, no image is offered twice."""

import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flows.annotation.batches import all_annotation_batches, image_states, open_images
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


def provider_key(batch: int, annotation: dict[str, Any]) -> _AnnotationKey:
    """Return a key that is unique for each annotation at the provider."""
    width_px = annotation["boxes"][0]["xyxy_px"][2] - 2 if annotation["boxes"] else None
    return annotation["image_id"], batch, annotation["annotator"], annotation["status"], width_px


def stored_key(label: LabeledImage) -> _AnnotationKey:
    """Return the same key for a label in a label batch."""
    width_px = label.boxes[0].xyxy_px[2] - 2 if label.boxes else None
    return label.image_id, label.offered_batch, label.annotator, label.status, width_px


class AnnotationStateMachine(RuleBasedStateMachine):
    """Two annotators, a clock, and rounds that may crash."""

    @initialize(rule=st.sampled_from(["skip", "proceed"]), max_pending=st.sampled_from([4, 100]))
    def start(self, rule: str, max_pending: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gleaner-annotation-"))
        self.workspace = make_fake_campaign(self.folder / "campaign")
        self.provider = FakeProvider(self.folder / "tool.json")
        self.params = params_with(
            on_few_labels=rule, min_new_labels=2, max_pending_images=max_pending, lease_days=LEASE_DAYS
        )
        self.width_px = 3.0
        run_fake_round(self.workspace, self.provider, self.params)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.run_rounds_without_leases()
            if tasks := self.provider.all_tasks():  # a second opinion alone makes no batch: it waits for a next label
                self.width_px += 0.25
                self.provider.annotate(*tasks[0], "labeled", self.width_px)
                self.run_rounds_without_leases()
            self.every_annotation_is_stored_or_quarantined()
            self.newest_annotation_is_current()
            shutil.rmtree(self.folder)

    def run_rounds_without_leases(self) -> None:
        self.provider.advance_days(LEASE_DAYS)  # all leases expire
        for _ in range(3):
            self.run_round()

    @precondition(lambda self: self.provider.all_tasks())
    @rule(
        data=st.data(),
        status=st.sampled_from(["labeled", "labeled", "empty", "skipped", "invalid"]),
        annotator=st.sampled_from(["ann", "bob"]),
        clock_skew_days=st.sampled_from([0, 0, 0, 1, 4000]),
    )
    def annotate(self, data: st.DataObject, status: str, annotator: str, clock_skew_days: int) -> None:
        """Annotate any task: a new one, one that has an annotation, or a withdrawn one."""
        batch, image_id = data.draw(st.sampled_from(self.provider.all_tasks()))
        self.width_px += 0.25
        width_px = 500 + self.width_px if status == "invalid" else self.width_px
        status = "labeled" if status == "invalid" else status
        self.provider.annotate(batch, image_id, status, width_px, annotator=annotator, clock_skew_days=clock_skew_days)

    @rule(days=st.sampled_from([1, LEASE_DAYS]))
    def advance_time(self, days: float) -> None:
        self.provider.advance_days(days)

    @rule()
    def run_round(self) -> None:
        try:
            run_fake_round(self.workspace, self.provider, self.params)
        except UserError as error:
            if "valid annotations is 0" not in str(error):
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
                raise ProviderError("tool", f"{call} failed", transient=transient)

        try:
            run_fake_round(self.workspace, FakeProvider(self.provider.path, after=refuse), self.params)
        except UserError:
            return

    @invariant()
    def no_image_is_offered_twice(self) -> None:
        """The provider asserts it too, when a batch is delivered."""
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
        keys = [stored_key(label) for batch in batches for label in (*batch.other_annotations, *batch.images)]
        # An older label may become primary again where a newer one was changed to a skip; then it is in two batches.
        assert all(keys.count(one) == 1 for one in keys if one[4] is not None and not self._may_be_restored(one))

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
        labels = read_labels(self.workspace.labels).all_annotations
        stored = {stored_key(label) for found in labels.values() for label in found}
        quarantined = {provider_key(entry.batch, entry.raw_annotation) for entry in read_entries(self.workspace)}
        present = {provider_key(batch, annotation) for batch, annotation in self.provider.current_annotations()}
        assert present <= stored | quarantined
        assert set(labels) - {"f" * 16} <= set(POOL)

    def newest_annotation_is_current(self) -> None:
        """Of the last labels of each annotator in each batch, one that is no skip, and of these the latest."""
        store = read_labels(self.workspace.labels)
        for image_id in POOL:
            last = {(label.offered_batch, label.annotator): label for label in store.all_annotations.get(image_id, ())}
            if last:
                expected = max(
                    last.values(),
                    key=lambda label: (label.status != "skipped", datetime.fromisoformat(label.finished_at)),
                )
                assert stored_key(store.current[image_id].label) == stored_key(expected)

    def _may_be_restored(self, one: _AnnotationKey) -> bool:
        labels = read_labels(self.workspace.labels).all_annotations[one[0]]
        return len({(label.offered_batch, label.annotator) for label in labels}) > 1

    def _prepared(self) -> set[str]:
        return {image for delivery in all_annotation_batches(self.workspace) for image in delivery.image_ids}


TestAnnotation = pytest.mark.integration(AnnotationStateMachine.TestCase)
TestAnnotation.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
