"""Honeypots: which images, how they look, and that their answers only measure."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flows.annotation.batches import (
    open_images,
    prepare_annotation_batch,
    read_annotation_batch,
    read_manifest,
    set_state,
)
from flows.annotation.collect import collect, finalize_collection
from flows.annotation.deliver import deliver
from flows.annotation.honeypots import known_labels, knows, with_honeypots
from flows.annotation.providers.base import AnnotationBatch
from flows.annotation.providers.folder_outbox import OfferedImage, _manifest_line
from flows.workspace import git
from tasks.data.annotations import AnnotatedImage, read_annotated, write_annotated
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask, Box, Prediction
from tasks.params import Params, load_params
from tasks.reporting.people import measure_people
from tasks.storage import files
from tests.flows.annotation.test_collect_and_batches import Scripted, answer
from tests.flows.small_campaign import REPOSITORY, run_gleaner
from tests.tasks.data.test_label_store import make_label, write_batch

CLASSES = ["a", "b"]


def params(frac: float, whole: Params | None = None) -> Params:
    whole = whole or load_params(REPOSITORY / "params.yaml").model_copy(update={"classes": CLASSES})
    return whole.model_copy(update={"provider": whole.provider.model_copy(update={"honeypot_frac": frac})})


def task(image_id: str, rank: int, **changes: Any) -> AnnotationTask:
    drawn = (Prediction(category="a", xyxy_px=(1, 1, 9, 9), score=0.5),)
    values = {"uri": f"{image_id}.png", "width_px": 100, "height_px": 80, "reason": f"reason {rank}",
              "uncertainty": 0.1, "predictions": drawn, "model_digest": "d", **changes}  # fmt: skip
    return AnnotationTask(image_id=image_id, rank=rank, **values)


def labeled(
    image_id: str, *corners: tuple[float, float, float, float], batch: int = 0, **changes: Any
) -> AnnotatedImage:
    boxes = tuple(Box(category="a", xyxy_px=box) for box in corners)
    return AnnotatedImage(image_id, f"{image_id}.png", 100, 80, boxes, batch, **changes)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Ten seed images of 20 boxes each, and labels of two annotators that agree (agreed) and do not (disputed)."""
    found = Workspace(tmp_path)
    corners = [(10.0 * n % 90, 20.0 * (n // 9), 10.0 * n % 90 + 8, 20.0 * (n // 9) + 16) for n in range(20)]
    boxes = [{"category": "a", "xyxy_px": list(box)} for box in corners]
    other = [{"category": "b", "xyxy_px": list(box)} for box in corners]
    seed = [make_label(f"seed{n}", boxes=boxes, annotator="imported", offered_batch=0) for n in range(10)]
    write_batch(found.labels, 0, *seed)
    names = ("agreed", "disputed", "single")
    answers = [make_label(name, boxes=boxes, annotator="ann") for name in names]
    others = [make_label("agreed", boxes=boxes, annotator="bob"), make_label("disputed", boxes=other, annotator="bob")]
    write_batch(found.labels, 1, *answers, other_annotations=others, leased={"seed0": 1})
    images = [labeled(f"seed{n}", *corners) for n in range(10)]
    images += [labeled(name, *corners, batch=1) for name in names]
    write_annotated(found.derived("assemble") / "labeled.parquet", images, CLASSES)
    return found


TASKS = [task(f"new{n}", n + 1) for n in range(10)] + [task("seed1", 11, checks_batch=0)]


def honeypots(tasks: Sequence[AnnotationTask]) -> list[AnnotationTask]:
    return [one for one in tasks if one.is_honeypot]


@pytest.mark.parametrize(("frac", "number"), [(0.0, 0), (0.01, 1), (0.2, 2), (0.5, 5)])
def test_a_share_of_the_new_images_is_added_and_all_else_stays(workspace: Workspace, frac: float, number: int) -> None:
    mixed = with_honeypots(workspace, params(frac), TASKS, 3)
    assert len(honeypots(mixed)) == number
    assert [one for one in mixed if not one.is_honeypot] == TASKS
    assert mixed == with_honeypots(workspace, params(frac), TASKS, 3)  # the same when it is prepared anew
    assert with_honeypots(workspace, params(frac), [], 3) == []


def test_only_labels_that_are_known_are_used(workspace: Workspace) -> None:
    used = {
        one.image_id
        for batch in range(3, 60)
        for one in honeypots(with_honeypots(workspace, params(0.5), TASKS, batch))
    }
    # seed0 is in the next test; seed1 is in the batch as a check; disputed and single have no second answer like it.
    assert used == {"agreed", *(f"seed{n}" for n in range(10) if n != 1)}
    store = read_labels(workspace.labels)
    assert [knows(store, name) for name in ("agreed", "disputed", "single", "seed3", "gone")] == [
        True,
        False,
        False,
        True,
        False,
    ]
    images = read_annotated(workspace.derived("assemble") / "labeled.parquet", CLASSES)
    assert "seed0" not in {image.image_id for image in known_labels(images, store, {"seed0"})}
    empty = dataclasses.replace(images[0], boxes=())
    crowd = dataclasses.replace(images[0], crowd_regions=images[0].boxes)
    assert known_labels([empty, crowd], store, ()) == []


def test_a_honeypot_looks_like_the_task_before_it_and_has_faults_to_be_found(workspace: Workspace) -> None:
    mixed = with_honeypots(workspace, params(0.5), TASKS, 3)
    truth = {
        image.image_id: image for image in read_annotated(workspace.derived("assemble") / "labeled.parquet", CLASSES)
    }
    kept = moved = total = 0
    for before, one in pairwise(mixed):
        if not one.is_honeypot:
            continue
        assert (one.rank, one.reason, one.model_digest) == (before.rank, before.reason, before.model_digest)
        corners = [box.xyxy_px for box in truth[one.image_id].boxes]
        drawn = [box.xyxy_px for box in one.predictions]
        assert all(0 <= x1 < x2 <= 100 and 0 <= y1 < y2 <= 80 for x1, y1, x2, y2 in drawn)
        total += len(corners)
        kept += len(set(corners) & set(drawn))
        moved += len(set(drawn) - set(corners))
    assert total == 100
    assert 35 <= kept <= 65  # half of them; the draws are fixed
    assert 12 <= moved <= 38
    line = _manifest_line(OfferedImage(honeypots(mixed)[0], "images/x.png", None))
    assert "honeypot" not in json.dumps(line)


def test_without_pre_drawn_boxes_in_the_batch_a_honeypot_has_none(workspace: Workspace) -> None:
    bare = [task(f"new{n}", n + 1, predictions=()) for n in range(6)]
    assert {one.predictions for one in honeypots(with_honeypots(workspace, params(0.5), bare, 3))} == {()}


def prepare_with_honeypot(workspace: Workspace) -> tuple[AnnotationBatch, str, Params]:
    """Offer batch 2 anew, with a seed image as its honeypot."""
    settings = params(0.1, load_params(workspace.params))
    tasks = read_manifest(workspace.derived("handoff") / "manifest.jsonl")
    mixed = with_honeypots(workspace, settings, tasks, 2)
    (honeypot,) = honeypots(mixed)
    prepare_annotation_batch(workspace, git.campaign_id(workspace.root), 2, mixed)
    prepared = read_annotation_batch(workspace, 2)
    assert prepared is not None
    return set_state(prepared, "delivered", "receipt"), honeypot.image_id, settings


@pytest.mark.integration
def test_answers_to_honeypots_are_scored_and_become_no_labels(after_two_rounds: Workspace) -> None:
    delivery, image_id, settings = prepare_with_honeypot(after_two_rounds)
    before = read_labels(after_two_rounds.labels)
    label = before.current[image_id].label
    assert delivery.checked_ids == (image_id,)
    assert len(delivery.new_ids) == len(delivery.image_ids) - 1
    first = delivery.new_ids[0]
    right = answer(image_id, annotator="ann", boxes=[box.model_dump(mode="json") for box in label.boxes])
    wrong = answer(image_id, 0, 0, 5, 5, annotator="bob", seconds_spent=12.0)
    only_honeypots = Scripted([right, wrong])
    result = collect(after_two_rounds, only_honeypots, settings, 2, [delivery], datetime.now(UTC))
    assert result.num_images == 0  # they are no labels: no batch, no round
    assert not after_two_rounds.label_batch(2).exists()
    result = collect(
        after_two_rounds, Scripted([answer(first), right, wrong]), settings, 2, [delivery], datetime.now(UTC)
    )
    assert result.num_images == 1
    finalize_collection(after_two_rounds, 2)
    store = read_labels(after_two_rounds.labels)
    assert store.current[image_id] == before.current[image_id]
    assert store.all_annotations[image_id] == before.all_annotations[image_id]
    assert {found.annotator for found in store.honeypots} == {"ann", "bob"}
    assert set(open_images(delivery, store)) == set(delivery.new_ids[1:])  # answered, so no longer out
    scores = {person.annotator: person.honeypots.f1 for person in measure_people(store) if person.honeypots.images}
    assert scores == {"ann": 1.0, "bob": 0.0}
    shown = run_gleaner("people", "--json", cwd=after_two_rounds.root)
    assert shown.returncode == 0, shown.stderr
    assert {row["annotator"]: row["honeypots"]["accuracy_f1"] for row in json.loads(shown.stdout)}["bob"] == 0.0
    table = run_gleaner("people", cwd=after_two_rounds.root, COLUMNS="160")
    assert [line.split()[:2] for line in table.stdout.splitlines() if line.strip().startswith("bob")] == [["bob", "1"]]


@pytest.mark.integration
def test_an_unanswered_honeypot_stays_out_until_its_lease_ends(after_two_rounds: Workspace) -> None:
    delivery, image_id, settings = prepare_with_honeypot(after_two_rounds)
    answers = [answer(new) for new in delivery.new_ids]
    collect(after_two_rounds, Scripted(answers), settings, 2, [delivery], datetime.now(UTC))
    store = read_labels(after_two_rounds.labels)
    assert open_images(delivery, store) == (image_id,)
    assert store.honeypots == ()


@pytest.mark.integration
def test_a_delivery_mixes_honeypots_in_for_any_provider(after_two_rounds: Workspace) -> None:
    settings = params(0.4, load_params(after_two_rounds.params))
    folder = after_two_rounds.delivery(2)
    kept = folder.rename(folder.with_name("elsewhere"))
    provider = Scripted([])
    result = deliver(after_two_rounds, provider, settings, 1)
    delivery = read_annotation_batch(after_two_rounds, 2)
    assert delivery is not None
    tasks = read_manifest(folder / "manifest.jsonl")
    assert provider.calls == ["deliver"]
    assert [one.image_id for one in tasks] == list(delivery.image_ids)
    assert len(honeypots(tasks)) == len(delivery.checked_ids) == 1 == result.num_images - len(delivery.new_ids)
    assert kept.is_dir()
    assert files.sha256_file(folder / "manifest.jsonl") != files.sha256_file(
        after_two_rounds.derived("handoff") / "manifest.jsonl"
    )
