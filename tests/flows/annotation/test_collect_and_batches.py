"""Collection and delivery, on a copy of a campaign whose batch 2 is with the annotators."""

import dataclasses
import shutil
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import flows.annotation.collect
from flows.annotation.batches import (
    all_annotation_batches,
    lease_expires_at,
    prepare_annotation_batch,
    read_annotation_batch,
    read_manifest,
    remove_archived_files,
)
from flows.annotation.collect import CollectionResult, collect, finalize_collection
from flows.annotation.deliver import deliver
from flows.annotation.providers import create_provider
from flows.annotation.providers.base import AnnotationBatch, LabelingProgress, LabelProvider, RawAnnotation
from flows.workspace import dvc, git
from flows.workspace.rounds import last_published_round, newest_round
from tasks.data.paths import Workspace
from tasks.params import Params, load_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.flows.small_campaign import BUDGET

pytestmark = pytest.mark.integration


class Scripted:
    """A provider that returns given annotations and records the calls."""

    name = "scripted"

    def __init__(self, answers: Sequence[RawAnnotation], open_images: int = 0) -> None:
        self.answers, self.open_images = list(answers), open_images
        self.calls: list[str] = []

    def check(self) -> None:
        pass

    def deliver(self, delivery: AnnotationBatch) -> str:
        self.calls.append("deliver")
        return f"receipt {delivery.key[:4]}"

    def status(self, delivery: AnnotationBatch) -> LabelingProgress:
        return LabelingProgress(len(self.answers), self.open_images)

    def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
        self.calls.append("collect")
        return self.answers

    def withdraw(self, delivery: AnnotationBatch, image_ids: Collection[str]) -> None:
        self.calls.append("withdraw")
        self.open_images = 0


def params(workspace: Workspace, **nightly: Any) -> Params:
    whole = load_params(workspace.params)
    return whole.model_copy(update={"nightly": whole.nightly.model_copy(update=nightly)})


def open_delivery(workspace: Workspace) -> AnnotationBatch:
    delivery = read_annotation_batch(workspace, 2)
    assert delivery is not None
    assert delivery.state == "delivered"
    return delivery


def collect_two(workspace: Workspace, provider: LabelProvider, settings: Params | None = None) -> CollectionResult:
    """Collect as a run does when batch 2 is with the annotators."""
    return collect(workspace, provider, settings or params(workspace), 2, [open_delivery(workspace)], datetime.now(UTC))


def answer(image_id: str, *corners: float, **changes: Any) -> dict[str, Any]:
    box = {"category": "dark", "xyxy_px": list(corners or (2, 3, 20, 21))}
    times = {"finished_at": "2026-03-01T10:00:00+00:00", "seconds_spent": None}
    return {"image_id": image_id, "status": "labeled", "boxes": [box], "annotator": "ann", **times, **changes}


def test_rejected_annotations_are_counted_and_kept_and_the_rest_becomes_a_batch(after_two_rounds: Workspace) -> None:
    delivery = open_delivery(after_two_rounds)
    first, second, third = delivery.image_ids
    provider = Scripted(
        [
            answer(first),
            answer(second, 0, 0, 400, 20),
            answer(third, boxes=[{"category": "unicorn", "xyxy_px": [1, 1, 5, 5]}]),
            answer("0" * 16),
            answer(first, 5, 5, 5, 9),
            answer(third, 4, 4, 4, 9),
        ]
    )
    collected = collect_two(after_two_rounds, provider)
    assert (collected.num_images, collected.num_rejected) == (1, 5)
    reasons = sorted(files.read_json(path)["reason"] for path in after_two_rounds.quarantine.iterdir())
    assert len(reasons) == 5
    for text, times in (("inside the image", 1), ("class is 'unicorn'", 1), ("one of this batch", 1), ("no area", 2)):
        assert sum(text in reason for reason in reasons) == times
    batch = files.read_json(after_two_rounds.label_batch(2))
    assert [image["image_id"] for image in batch["images"]] == [first]
    assert batch["provider"] == "scripted"
    assert newest_round(after_two_rounds) == 2
    assert last_published_round(after_two_rounds) == 1
    assert git.run_git(after_two_rounds.root, "status", "--porcelain") == ""


def test_open_images_are_withdrawn_before_the_last_collection_when_their_lease_has_expired(
    after_two_rounds: Workspace,
) -> None:
    delivery = open_delivery(after_two_rounds)
    provider = Scripted([answer(delivery.image_ids[0])], open_images=2)
    at = lease_expires_at(delivery, params(after_two_rounds).provider.lease_days)
    collected = collect(after_two_rounds, provider, params(after_two_rounds), 2, [delivery], at)
    assert provider.calls == ["collect", "withdraw", "collect"]
    assert collected.message == "Batch 2: 1 image labeled, 0 rejected, 2 withdrawn, 0 still with the annotators."
    again = read_annotation_batch(after_two_rounds, 2)
    assert again is not None
    assert again.state == "collected"


def test_open_images_stay_leased_until_the_lease_expires(after_two_rounds: Workspace) -> None:
    first, *others = open_delivery(after_two_rounds).image_ids
    provider = Scripted([answer(first)], open_images=2)
    assert collect_two(after_two_rounds, provider).num_images == 1
    assert provider.calls == ["collect"]
    assert files.read_json(after_two_rounds.label_batch(2))["leased"] == dict.fromkeys(sorted(others), 2)
    assert open_delivery(after_two_rounds).image_ids == (first, *others)
    assert collect_two(after_two_rounds, provider).num_images == 1  # a retried task
    assert newest_round(after_two_rounds) == 2


def test_a_collection_without_labels_changes_nothing(after_two_rounds: Workspace) -> None:
    before = git.head_commit(after_two_rounds.root)
    provider = Scripted([], open_images=BUDGET)
    collected = collect_two(after_two_rounds, provider)
    assert (collected.num_images, provider.calls) == (0, ["collect"])
    assert collected.message == "No new labels (batch 2: 0 finished, 3 open): no new round."
    assert newest_round(after_two_rounds) == 1
    assert git.head_commit(after_two_rounds.root) == before


@pytest.mark.parametrize(("rule", "images"), [("skip", 0), ("proceed", 1)])
def test_too_few_labels_wait_or_make_a_batch_as_params_say(after_two_rounds: Workspace, rule: str, images: int) -> None:
    delivery = open_delivery(after_two_rounds)
    provider = Scripted([answer(delivery.image_ids[0])], open_images=2)
    settings = params(after_two_rounds, on_few_labels=rule, min_new_labels=2)
    collected = collect_two(after_two_rounds, provider, settings)
    assert collected.num_images == images
    assert newest_round(after_two_rounds) == (2 if images else 1)


def test_annotations_of_which_none_is_valid_are_an_error(after_two_rounds: Workspace) -> None:
    delivery = open_delivery(after_two_rounds)
    provider = Scripted([answer(delivery.image_ids[0], 1, 1, 1, 1)], open_images=2)
    with pytest.raises(UserError, match=r"valid annotations is 0 of 1, .*no area"):
        collect_two(after_two_rounds, provider)
    assert newest_round(after_two_rounds) == 1
    assert "withdraw" not in provider.calls


class Killed(BaseException):
    """A kill, which no code under test catches."""


@pytest.mark.parametrize(
    "moment", ["archive_round_outputs", "add", "write_batch", "set_state", "remove_archived_files", "commit"]
)
def test_a_collection_killed_anywhere_is_repeated_to_the_same_state(
    after_two_rounds: Workspace, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = params(after_two_rounds)
    provider = create_provider(after_two_rounds, settings)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        place = {
            "add": (dvc, "add"),
            "commit": (git, "commit"),
            "write_batch": (files, "write_json"),
        }.get(moment, (flows.annotation.collect, moment))
        patch.setattr(*place, die)
        with pytest.raises(Killed):
            collect_two(after_two_rounds, provider, settings)
    # the first step of the next run
    finalize_collection(after_two_rounds, newest_round(after_two_rounds))
    if newest_round(after_two_rounds) == 1:
        assert collect_two(after_two_rounds, provider, settings).num_images == BUDGET
    assert newest_round(after_two_rounds) == 2
    assert len(files.read_json(after_two_rounds.label_batch(2))["images"]) == BUDGET
    collected = read_annotation_batch(after_two_rounds, 2)
    assert collected is not None
    assert collected.state == "collected"
    assert {path.name for path in collected.folder.iterdir()} == {"delivery.json", "manifest.jsonl"}
    assert (after_two_rounds.warm_start / "teacher.pth").read_bytes() == b"teacher of 8 labels"
    assert git.run_git(after_two_rounds.root, "status", "--porcelain") == ""
    assert not after_two_rounds.quarantine.exists()
    dvc.run_dvc(after_two_rounds.root, "status", "--quiet", "data/warm_start.dvc", "data/detections_at_selection.dvc")


def test_a_delivery_with_a_missing_file_is_an_error_with_its_name(after_two_rounds: Workspace) -> None:
    delivery = open_delivery(after_two_rounds)
    (delivery.folder / "teacher.pth").unlink()
    with pytest.raises(UserError, match=r"teacher\.pth: the file is missing"):
        collect_two(after_two_rounds, Scripted([answer(delivery.image_ids[0])]))
    assert newest_round(after_two_rounds) == 1


def test_a_batch_is_offered_once_however_often_it_is_delivered(after_two_rounds: Workspace) -> None:
    before = git.head_commit(after_two_rounds.root)
    provider = Scripted([])
    for _ in range(2):
        assert deliver(after_two_rounds, provider, params(after_two_rounds), 1).num_images == BUDGET
    assert provider.calls == []
    assert git.head_commit(after_two_rounds.root) == before


def test_a_delivery_killed_before_it_was_sent_is_sent_with_the_same_key(
    after_two_rounds: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = open_delivery(after_two_rounds).key
    forget_delivery(after_two_rounds)
    provider = Scripted([])
    with monkeypatch.context() as patch:
        patch.setattr(provider, "deliver", lambda _: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            deliver(after_two_rounds, provider, params(after_two_rounds), 1)
    prepared = read_annotation_batch(after_two_rounds, 2)
    assert prepared is not None
    assert (prepared.state, prepared.key, prepared.receipt) == ("prepared", key, None)
    deliver(after_two_rounds, provider, params(after_two_rounds), 1)
    delivered = open_delivery(after_two_rounds)
    assert (delivered.key, delivered.created_at, provider.calls) == (key, prepared.created_at, ["deliver"])
    assert delivered.receipt == f"receipt {key[:4]}"


def test_an_incomplete_delivery_folder_is_written_again(
    after_two_rounds: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_delivery(after_two_rounds)
    tasks = read_manifest(after_two_rounds.derived("handoff") / "manifest.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            prepare_annotation_batch(after_two_rounds, "campaign", 2, tasks)
    assert read_annotation_batch(after_two_rounds, 2) is None
    assert [delivery.batch for delivery in all_annotation_batches(after_two_rounds)] == [1]
    assert deliver(after_two_rounds, Scripted([]), params(after_two_rounds), 1).num_images == BUDGET


def test_an_empty_selection_completes_the_campaign(after_two_rounds: Workspace) -> None:
    forget_delivery(after_two_rounds)
    manifest = after_two_rounds.derived("handoff") / "manifest.jsonl"
    manifest.unlink()
    manifest.write_bytes(b"")
    ledger = files.read_json(after_two_rounds.ledger(1))
    files.write_json(after_two_rounds.ledger(1), {**ledger, "manifest_sha256": files.sha256_file(manifest)})
    provider = Scripted([])
    delivered = deliver(after_two_rounds, provider, params(after_two_rounds), 1)
    assert (delivered.num_images, provider.calls) == (0, [])
    assert "the campaign is complete" in delivered.message
    prepared = read_annotation_batch(after_two_rounds, 2)
    assert prepared is not None
    assert (prepared.image_ids, prepared.state) == ((), "collected")
    assert (prepared.folder / "teacher.pth").is_file()


def test_a_manifest_that_differs_from_the_published_one_is_not_delivered(after_two_rounds: Workspace) -> None:
    forget_delivery(after_two_rounds)
    manifest = after_two_rounds.derived("handoff") / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.unlink()
    manifest.write_text("".join(lines[1:]))
    with pytest.raises(UserError, match=r"git checkout round-0001 -- dvc\.lock"):
        deliver(after_two_rounds, Scripted([]), params(after_two_rounds), 1)


def forget_delivery(workspace: Workspace) -> None:
    """Restore the state after a kill right after publishing."""
    git.run_git(workspace.root, "reset", "--quiet", "--hard", "round-0001")
    for path in workspace.delivery(2).iterdir():
        path.unlink()
    workspace.delivery(2).rmdir()


def test_a_fault_in_one_delivery_keeps_nothing_back_from_the_others(after_two_rounds: Workspace) -> None:
    delivery = open_delivery(after_two_rounds)
    broken = dataclasses.replace(delivery, batch=77)

    class Faulty(Scripted):
        def collect(self, delivery: AnnotationBatch) -> Sequence[RawAnnotation]:
            if delivery.batch == 77:
                raise KeyError("zero")
            return super().collect(delivery)

    provider = Faulty([answer(delivery.image_ids[0])])
    result = collect(after_two_rounds, provider, params(after_two_rounds), 2, [broken, delivery], datetime.now(UTC))
    assert result.num_images == 1
    assert result.provider_errors
    assert all("batch 77" in str(error) and "KeyError" in str(error) for error in result.provider_errors)


def test_foreign_folders_among_the_deliveries_are_left_alone(after_two_rounds: Workspace) -> None:
    folder = after_two_rounds.root / "deliveries"
    before = all_annotation_batches(after_two_rounds)
    shutil.copytree(before[-1].folder, folder / "batch-0002.bak")
    (before[-1].folder / ".ipynb_checkpoints").mkdir()
    assert all_annotation_batches(after_two_rounds) == before
    remove_archived_files(before[-1])
    assert (before[-1].folder / ".ipynb_checkpoints").is_dir()
