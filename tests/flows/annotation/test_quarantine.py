"""Rejected annotations: kept, listed, validated again, and never lost or imported twice."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.annotation import quarantine
from flows.annotation.annotation_rules import Rejection, RejectionKind, annotation_digest, reject
from flows.annotation.batches import read_annotation_batch, set_state
from flows.annotation.collect import LabelCollector
from flows.annotation.providers.base import AnnotationBatch, LabelingProgress, RawAnnotation
from flows.annotation.quarantine import (
    add_to_quarantine,
    approved_annotations,
    entry_state,
    read_entries,
    released_annotations,
    retry,
)
from flows.cli.app import app
from flows.workspace import git
from flows.workspace.rounds import LEDGER_FORMAT
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask, LabelBatch, LabeledImage, Prediction
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files

IMAGE, OTHER = "a" * 16, "b" * 16
CONFIDENT = [Prediction(category="dark", xyxy_px=(4.0 * n, 1, 4.0 * n + 3, 9), score=0.99) for n in range(3)]


def make_annotation(**changes: Any) -> dict[str, Any]:
    box = {"category": "dark", "xyxy_px": [10, 10, 30, 30]}
    good = {"image_id": IMAGE, "status": "labeled", "boxes": [box], "annotator": "ann", "seconds_spent": 5.0}
    return {**good, "finished_at": "2026-03-01T10:00:00+00:00", "url": "http://127.0.0.1/tasks/7", **changes}


def make_rejection(reason: str = "no", kind: RejectionKind = "refused", **changes: Any) -> Rejection:
    return reject(kind, 1, reason, make_annotation(**changes))


def make_label(minute: int, annotator: str = "ann") -> LabeledImage:
    times = {"finished_at": f"2026-03-01T10:{minute:02d}:00+00:00", "seconds_spent": None, "offered_batch": 1}
    return LabeledImage(image_id=IMAGE, status="empty", boxes=(), annotator=annotator, **times)


def test_an_annotation_is_one_file_however_often_it_is_rejected(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    bad = make_annotation(image_id="../../etc/passwd", boxes=[[math.nan, math.inf]], extra=object, surrogate="\ud800")
    both = [reject("refused", 3, "no", bad), make_rejection()]
    assert len(add_to_quarantine(workspace, both)) == 2
    before = {path.name: path.read_bytes() for path in workspace.quarantine.iterdir()}
    assert add_to_quarantine(workspace, both) == []
    assert {path.name: path.read_bytes() for path in workspace.quarantine.iterdir()} == before
    assert len(before) == 2
    entries = {entry.batch: entry for entry in read_entries(workspace)}
    assert entries[3].raw_annotation["image_id"] == "../../etc/passwd"
    assert entries[3].digest == annotation_digest(3, entries[3].raw_annotation) == annotation_digest(3, bad)
    assert (entries[1].annotator, entries[1].url) == ("ann", "http://127.0.0.1/tasks/7")


def test_a_new_reason_is_reported_and_the_old_one_stays_in_the_history(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    add_to_quarantine(workspace, [make_rejection("class is 'cow'")])
    assert len(add_to_quarantine(workspace, [make_rejection("no area")])) == 1
    (entry,) = read_entries(workspace)
    assert entry.reason == "no area"
    assert [(event.event, event.reason) for event in entry.history] == [
        ("rejected", "class is 'cow'"),
        ("rejected", "no area"),
    ]


@pytest.mark.parametrize(
    ("labels", "state"),
    [
        ([], "open"),
        ([make_label(0)], "imported"),
        ([make_label(1)], "superseded"),
        ([make_label(1, "bob")], "superseded"),
        ([make_label(0, "bob").model_copy(update={"finished_at": "2026-03-01T09:59:00+00:00"})], "open"),
    ],
)
def test_the_state_is_derived_from_the_labels(tmp_path: Path, labels: list[LabeledImage], state: str) -> None:
    add_to_quarantine(Workspace(tmp_path), [make_rejection()])
    (entry,) = read_entries(Workspace(tmp_path))
    assert entry_state(entry, {IMAGE: labels}) == state


def test_an_annotation_without_a_valid_time_stays_open(tmp_path: Path) -> None:
    add_to_quarantine(Workspace(tmp_path), [make_rejection(finished_at="yesterday")])
    (entry,) = read_entries(Workspace(tmp_path))
    assert entry_state(entry, {IMAGE: [make_label(5)]}) == "open"


def test_a_broken_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    add_to_quarantine(workspace, [make_rejection()])
    (path,) = workspace.quarantine.iterdir()
    path.write_text('{"item": "x"}')
    with pytest.raises(
        UserError, match=rf"{path.name}: reason: Field required.*git checkout -- quarantine/{path.name}"
    ):
        read_entries(workspace)


@pytest.fixture
def offered(small_campaign: Workspace) -> Workspace:
    """A campaign whose batch 1, from an accurate teacher, is with the annotators."""
    tasks = [AnnotationTask(
        image_id=image_id, uri=f"data/images/{image_id}.png", width_px=40, height_px=32, rank=rank, reason="test",
        uncertainty=0.5, predictions=tuple(CONFIDENT), model_digest="d",
    ) for rank, image_id in enumerate((IMAGE, OTHER), start=1)]  # fmt: skip
    folder = small_campaign.delivery(1)
    files.write_bytes(folder / "manifest.jsonl", "".join(task.model_dump_json() + "\n" for task in tasks).encode())
    delivery = AnnotationBatch(1, "key", folder, (IMAGE, OTHER), "2026-01-01T00:00:00+00:00", "prepared", None)
    set_state(delivery, "delivered", "receipt")
    files.write_json(small_campaign.ledger(0), {"format": LEDGER_FORMAT, "metrics": {"teacher": {"AP50": 80.0}}})
    git.commit(small_campaign, "Deliver")
    return small_campaign


def released(workspace: Workspace) -> dict[int, list[RawAnnotation]]:
    return released_annotations(workspace, read_labels(workspace.labels).all_annotations)


def add_class(workspace: Workspace, name: str) -> None:
    content = yaml.safe_load(workspace.params.read_text())
    workspace.params.write_text(yaml.safe_dump({**content, "classes": [*content["classes"], name]}))


def test_after_a_class_was_added_its_annotations_are_released_and_others_stay(offered: Workspace) -> None:
    cow = make_annotation(boxes=[{"category": "cow", "xyxy_px": [10, 10, 30, 30]}])
    flat = make_annotation(image_id=OTHER, boxes=[{"category": "dark", "xyxy_px": [10, 10, 30, 10]}])
    add_to_quarantine(offered, [reject("refused", 1, "class is 'cow'", cow), reject("refused", 1, "no area", flat)])
    assert [result.accepted for result in retry(offered, [], approve=True)] == [False, False]
    assert released(offered) == {}
    add_class(offered, "cow")
    assert sorted(result.accepted for result in retry(offered, [], approve=False)) == [False, True]
    assert released(offered) == {1: [cow]}
    before = {path.name: path.read_bytes() for path in offered.quarantine.iterdir()}
    revision = git.head_commit(offered.root)
    assert [result.accepted for result in retry(offered, [], approve=False)] == [False]  # the other is not open
    assert {path.name: path.read_bytes() for path in offered.quarantine.iterdir()} == before
    assert git.head_commit(offered.root) == revision
    assert "params.yaml" in git.run_git(offered.root, "status", "--porcelain")  # the user commits their own change
    assert "quarantine" not in git.run_git(offered.root, "status", "--porcelain")


def test_a_released_annotation_that_is_invalid_again_is_rejected_again(offered: Workspace) -> None:
    cow = make_annotation(boxes=[{"category": "cow", "xyxy_px": [10, 10, 30, 30]}])
    add_to_quarantine(offered, [reject("refused", 1, "class is 'cow'", cow)])
    plain = offered.params.read_text()
    add_class(offered, "cow")
    (name,) = [result.entry.name for result in retry(offered, [], approve=False)]
    offered.params.write_text(plain)
    (result,) = retry(offered, [f"{name}.json"], approve=False)
    assert (result.accepted, released(offered)) == (False, {})
    assert [event.event for event in result.entry.history] == ["rejected", "released", "rejected"]


def test_approve_releases_suspicious_annotations_only(offered: Workspace) -> None:
    empty = make_annotation(status="empty", boxes=[])
    flat = make_annotation(image_id=OTHER, boxes=[{"category": "dark", "xyxy_px": [10, 10, 30, 10]}])
    add_to_quarantine(offered, [reject("suspicious", 1, "empty", empty), reject("refused", 1, "no area", flat)])
    assert not any(result.accepted for result in retry(offered, [], approve=False))
    assert approved_annotations(offered, 1) == frozenset()
    passed = {result.entry.image_id: result.accepted for result in retry(offered, [], approve=True)}
    assert passed == {IMAGE: True, OTHER: False}
    assert released(offered) == {1: [empty]}
    assert approved_annotations(offered, 1) == {annotation_digest(1, empty)}
    assert approved_annotations(offered, 2) == frozenset()


@pytest.mark.parametrize("writes", [0, 1])
def test_a_retry_killed_anywhere_ends_the_same(
    offered: Workspace, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [make_annotation(), make_annotation(image_id=OTHER)]
    add_to_quarantine(offered, [reject("refused", 1, "no", one) for one in good])
    left = [writes]
    write = quarantine._write_entry

    def killed(*arguments: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(quarantine, "_write_entry", killed)
        with pytest.raises(KeyboardInterrupt):
            retry(offered, [], approve=False)
    assert len(released(offered).get(1, [])) == writes
    retry(offered, [], approve=False)
    assert sorted(released(offered)[1], key=str) == sorted(good, key=str)
    assert [len(entry.history) for entry in read_entries(offered)] == [2, 2]
    assert git.run_git(offered.root, "status", "--porcelain") == ""


def test_unknown_names_and_those_that_are_not_open_are_refused(offered: Workspace) -> None:
    add_to_quarantine(offered, [make_rejection("drawn twice", "note")])
    (entry,) = read_entries(offered)
    with pytest.raises(UserError, match=rf"the name is 'batch-0001-x', expected.*Did you mean {entry.name}"):
        retry(offered, ["batch-0001-x"], approve=False)
    with pytest.raises(UserError, match="is note, expected open or released"):
        retry(offered, [entry.name], approve=False)
    assert retry(offered, [], approve=False) == []


def test_a_missing_delivery_is_an_error(offered: Workspace) -> None:
    add_to_quarantine(offered, [reject("refused", 4, "no", make_annotation())])
    with pytest.raises(UserError, match="batch-0004: the delivery of quarantined"):
        retry(offered, [], approve=False)


def test_the_command_line_lists_and_retries(offered: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    workspace_option = ["--workspace", str(offered.root)]
    runner = CliRunner()
    add_class(offered, "cow")
    assert runner.invoke(app, ["quarantine", "list", *workspace_option]).output == "0 open.\n"
    assert runner.invoke(app, ["quarantine", "retry", *workspace_option]).output == "No annotation is open.\n"
    assert "params.yaml" in git.run_git(offered.root, "status", "--porcelain")  # not committed by this command
    empty = make_annotation(status="empty", boxes=[], annotator="[b]bob[/b]")
    add_to_quarantine(
        offered, [reject("suspicious", 1, "'empty' where [teacher] is sure", empty), make_rejection("twice", "note")]
    )
    shown = runner.invoke(app, ["quarantine", "list", *workspace_option]).output
    for text in (IMAGE, "[b]bob[/b]", "suspicious", "where [teacher] is sure", "http://127.0.0.1/tasks/7"):
        assert text in shown
    assert "1 open, 1 closed (--all shows them)." in shown
    assert "twice" not in shown
    assert "twice" in runner.invoke(app, ["quarantine", "list", "--all", *workspace_option]).output
    rejected = runner.invoke(app, ["quarantine", "retry", *workspace_option]).output
    assert "with --approve to accept suspicious" in rejected
    accepted = runner.invoke(app, ["quarantine", "retry", "--approve", *workspace_option]).output
    assert accepted.endswith("will be imported by the next run\n1 of 1 accepted.\n")
    assert "released" in runner.invoke(app, ["quarantine", "list", *workspace_option]).output


class FixedProvider:
    """A provider that returns labels annotations."""

    name = "silent"

    def __init__(self, *annotations: RawAnnotation) -> None:
        self.annotations = annotations

    def check(self) -> None:
        pass

    def deliver(self, delivery: AnnotationBatch) -> str:
        raise AssertionError

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        return LabelingProgress(len(self.annotations), 0)

    def collect(self, delivery: AnnotationBatch) -> list[RawAnnotation]:
        return list(self.annotations)

    def withdraw(self, delivery: AnnotationBatch, image_ids: object) -> None:
        pass


def test_a_released_annotation_is_imported_once_by_the_next_collection(offered: Workspace) -> None:
    delivery = read_annotation_batch(offered, 1)
    assert delivery is not None
    cow = make_annotation(boxes=[{"category": "cow", "xyxy_px": [4, 4, 20, 20]}])
    flat = make_annotation(image_id=OTHER, boxes=[{"category": "dark", "xyxy_px": [4, 4, 20, 4]}])

    def collect(*annotations: RawAnnotation) -> tuple[LabeledImage, ...]:
        collector = LabelCollector(offered, FixedProvider(*annotations), load_params(offered.params), datetime.now(UTC))
        collector.fetch([delivery])
        return collector.new_annotations()[0]

    assert collect(cow, flat) == ()
    assert [result.accepted for result in retry(offered, [], approve=False)] == [False, False]
    add_class(offered, "cow")
    assert sorted(result.accepted for result in retry(offered, [], approve=False)) == [False, True]
    (label,) = collect(flat)  # the provider returns the cow no more, the quarantine does
    assert (label.image_id, label.boxes[0].category, label.offered_batch) == (IMAGE, "cow", 1)
    assert label.preannotations is not None
    assert len(label.preannotations) == len(CONFIDENT)
    assert collect(cow, flat) == (label,)  # from the provider and the quarantine
    batch = LabelBatch(batch=1, provider="silent", collected_at="2026-03-02T00:00:00+00:00", images=(label,))
    files.write_json(offered.label_batch(1), batch.model_dump(mode="json"))
    labels = read_labels(offered.labels).all_annotations
    assert {entry.image_id: entry_state(entry, labels) for entry in read_entries(offered)} == {
        IMAGE: "imported",
        OTHER: "open",
    }
    assert released(offered) == {}
    assert collect(cow, flat) == ()
