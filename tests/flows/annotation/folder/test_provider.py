"""Batches published and annotations collected, in a directory and on a real S3 server; killed anywhere and repeated."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.annotation.annotation_rules import ValidationContext
from flows.annotation.providers.base import ProviderError
from flows.annotation.providers.folder import FolderProvider
from flows.annotation.validation import validate_batch
from tasks.data.schemas import AnnotationTask
from tasks.params import load_params
from tasks.storage import backends, files, s3
from tasks.storage.backends import LocalStorage, S3Storage, StorageError, open_storage
from tests.flows.annotation.folder.conftest import CLASSES, Team, make_team
from tests.services import S3Server

ROOT = Path(__file__).parents[4]


def test_a_published_batch_has_everything_an_outside_tool_needs(any_team: Team) -> None:
    receipt = any_team.provider.deliver(any_team.delivery)
    assert receipt == f"{any_team.location}/outbox/batch-0003"
    ids = [task.image_id for task in any_team.tasks]
    assert any_team.list_names("outbox/batch-0003") == {
        "README.md", "manifest.jsonl", "coco.json", "_COMPLETE", "preannotations/coco.json",
        "preannotations/yolo/data.yaml", *(f"preannotations/yolo/labels/{i}.txt" for i in ids),
        "preannotations/ground_truth.manifest",
        *(f"preannotations/voc/{i}.xml" for i in ids), *(f"images/{i}.png" for i in ids),
    }  # fmt: skip
    skeleton = json.loads(any_team.read_outbox("batch-0003/coco.json") or b"")
    assert skeleton["annotations"] == []
    assert [image["file_name"] for image in skeleton["images"]] == [f"images/{i}.png" for i in ids]
    lines = [json.loads(line) for line in (any_team.read_outbox("batch-0003/manifest.jsonl") or b"").splitlines()]
    for line in lines:
        assert files.sha256_bytes(any_team.read_outbox(f"batch-0003/{line['uri']}") or b"") == line["sha256"]
    manifest = (any_team.read_outbox("batch-0003/preannotations/ground_truth.manifest") or b"").decode()
    entries = [json.loads(line) for line in manifest.splitlines()]
    inside = f"{receipt}/" if receipt.startswith("s3://") else ""  # Ground Truth wants whole addresses
    assert [entry["source-ref"] for entry in entries] == [f"{inside}images/{i}.png" for i in ids]
    assert {entry["gleaner-metadata"]["human-annotated"] for entry in entries} == {"no"}
    assert [len(entry["gleaner"]["annotations"]) for entry in entries] == [
        len(task.predictions) for task in any_team.tasks
    ]
    complete = json.loads(any_team.read_outbox("batch-0003/_COMPLETE") or b"")
    assert complete["classes"] == list(CLASSES)
    for name, sha256 in complete["sha256"].items():
        assert files.sha256_bytes(any_team.read_outbox(f"batch-0003/{name}") or b"") == sha256
    assert "inbox/batch-0003/" in (any_team.read_outbox("batch-0003/README.md") or b"").decode()
    again = any_team.provider.deliver(any_team.delivery)
    assert again == receipt


def test_images_are_copies_that_a_tool_may_change(team: Team) -> None:
    team.provider.deliver(team.delivery)
    copy = Path(team.location) / "outbox" / "batch-0003" / "images" / f"{team.tasks[0].image_id}.png"
    with Image.open(copy) as image:
        image.rotate(90).save(copy)
    original = team.root / team.tasks[0].uri
    assert files.sha256_file(original).startswith(team.tasks[0].image_id)


def test_images_in_a_bucket_stay_there_and_are_named(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    team = make_team(tmp_path / "campaign", str(tmp_path / "share"), lambda name: f"s3://pool/cam 1/{name}")
    team.provider.deliver(team.delivery)
    assert not any(name.startswith("images/") for name in team.list_names("outbox/batch-0003"))
    skeleton = json.loads(team.read_outbox("batch-0003/coco.json") or b"")
    assert skeleton["images"][0]["file_name"] == team.tasks[0].uri
    document = {**skeleton, "reviewed": [team.tasks[0].uri, skeleton["images"][1]["id"]]}
    team.write_to_inbox("batch-0003/a.json", document)
    assert set(team.collect()[0]) == {team.tasks[0].image_id, team.tasks[1].image_id}


def test_partial_work_is_collected_as_it_comes_and_again_each_time(any_team: Team) -> None:
    team = any_team
    team.provider.deliver(team.delivery)
    first, second, third, _ = (task.image_id for task in team.tasks)
    assert team.collect() == ({}, [])
    team.write_to_inbox("batch-0003/a.json", team.coco([(0, "cat", [1, 1, 5, 5])]))
    collected = team.collect()
    assert set(collected[0]) == {first}
    assert team.collect() == collected
    team.write_to_inbox(f"batch-0003/labels/{second}.txt", "0 0.5 0.5 0.5 0.5\n")
    team.provider.withdraw(team.delivery, [third])
    team.write_to_inbox(f"batch-0003/{third}.xml", "<annotation><status>empty</status></annotation>")
    late, problems = team.collect()
    assert (set(late), problems) == ({first, second, third}, [])
    assert team.provider.status(team.delivery).finished == 3


def test_withdrawn_images_are_listed_once(any_team: Team) -> None:
    team = any_team
    team.provider.withdraw(team.delivery, [team.tasks[0].image_id])
    assert team.read_outbox("batch-0003/withdrawn.json") is None  # nothing was published
    team.provider.deliver(team.delivery)
    team.provider.withdraw(team.delivery, [team.tasks[1].image_id, "of another batch"])
    team.provider.withdraw(team.delivery, [team.tasks[0].image_id])
    team.provider.withdraw(team.delivery, [])
    withdrawn = json.loads(team.read_outbox("batch-0003/withdrawn.json") or b"")
    assert withdrawn == {"image_ids": sorted(task.image_id for task in team.tasks[:2])}


def test_a_share_goes_to_a_second_annotator_who_does_not_see_the_first(any_team: Team) -> None:
    team = any_team
    team.double_annotation_frac = 0.5
    team.provider.deliver(team.delivery)
    second = json.loads(team.read_outbox("batch-0003-second/coco.json") or b"")
    doubled = [image["image_id"] for image in second["images"]]
    assert len(doubled) == 2
    image_id = doubled[0]
    team.write_to_inbox(f"batch-0003/{image_id}.txt", "0 0.5 0.5 0.5 0.5\n")
    team.write_to_inbox(f"batch-0003-second/{image_id}.txt", "1 0.5 0.5 0.25 0.25\n")
    found = team.provider.collect(team.delivery)
    assert {(answer["annotator"], answer["boxes"][0]["category"]) for answer in found} == {
        ("annotator", "cat"),
        ("second annotator", "dog, small"),
    }
    assert len({answer["answer_id"] for answer in found}) == 2
    assert team.provider.status(team.delivery).finished == 1


class SimulatedCrash(BaseException):
    """A kill, which no code under test catches."""


def crash_at_call(
    monkeypatch: pytest.MonkeyPatch, names: list[tuple[Any, str]], at: int, after: bool
) -> Callable[[], int]:
    """Raise at the n-th of these calls, before or after it; return a function that counts them."""
    count = 0
    lock = threading.Lock()

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            with lock:
                count += 1
                mine = count
            if mine == at and not after:
                raise SimulatedCrash
            result = original(*args, **kwargs)
            if mine == at and after:
                raise SimulatedCrash
            return result

        return call

    for owner, name in names:
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))
    return lambda: count


LOCAL_CALLS = [(shutil, "copyfile"), (Path, "write_bytes"), (Path, "mkdir"), (Path, "rename"), (backends, "_fsync")]
REMOTE_CALLS = [(backends, "write_object"), (backends, "upload_file")]


def published(team: Team, name: str) -> bytes | dict[str, Any] | None:
    """A published file without what depends on the place: the addresses in Ground Truth manifests and their digests."""
    content = team.read_outbox(name)
    if content is None or not name.endswith("/_COMPLETE"):
        return None if content is None else content.replace(team.location.encode(), b"")
    marker: dict[str, Any] = json.loads(content)
    for path in [path for path in marker["sha256"] if path.endswith(".manifest")]:
        written = team.read_outbox(name.replace("_COMPLETE", path)) or b""
        assert marker["sha256"].pop(path) == files.sha256_bytes(written)
    return marker


@pytest.mark.parametrize("after", [False, True])
def test_delivery_killed_anywhere_is_finished_by_the_next_call(any_team: Team, after: bool) -> None:
    team = any_team
    team.double_annotation_frac = 0.5
    calls = REMOTE_CALLS if team.location.startswith("s3://") else LOCAL_CALLS
    with pytest.MonkeyPatch.context() as patch:
        total = crash_at_call(patch, calls, at=0, after=after)
        team.provider.deliver(team.delivery)
    whole = {name: published(team, name) for name in team.list_names("outbox")}
    last = total()
    for at in sorted({*range(1, last, 12), *range(last - 3, last + 1)}):
        sub = Team(team.root, f"{team.location}/again-{at}", team.delivery, team.tasks, 0.5)
        if calls is LOCAL_CALLS:
            Path(sub.location).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            crash_at_call(patch, calls, at=at, after=after)
            with pytest.raises(SimulatedCrash):
                sub.provider.deliver(sub.delivery)
        for batch in ("batch-0003", "batch-0003-second"):
            marked = published(sub, f"{batch}/_COMPLETE")
            if marked:  # a marked folder is complete
                assert marked == whole[f"{batch}/_COMPLETE"]
                assert {n for n in sub.list_names("outbox") if n.startswith(f"{batch}/")} == {
                    n for n in whole if n.startswith(f"{batch}/")
                }
        sub.provider.deliver(sub.delivery)
        assert {name: published(sub, name) for name in sub.list_names("outbox")} == whole


def test_another_campaign_at_the_same_place_is_refused(any_team: Team) -> None:
    any_team.provider.deliver(any_team.delivery)
    delivery = any_team.delivery.__class__(**{**any_team.delivery.__dict__, "key": "of another campaign"})
    with pytest.raises(ProviderError, match="another campaign"):
        any_team.provider.deliver(delivery)


def test_files_of_others_under_the_name_of_the_batch_are_not_changed(team: Team) -> None:
    path = Path(team.location) / "outbox" / "batch-0003" / "mine.txt"
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(ProviderError, match="Directory not empty"):
        team.provider.deliver(team.delivery)
    assert path.read_text() == "precious"


def test_an_image_that_is_missing_or_changed_is_not_published(team: Team) -> None:
    path = team.root / team.tasks[2].uri
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ProviderError, match="dvc checkout"):
        team.provider.deliver(team.delivery)
    path.unlink()
    with pytest.raises(ProviderError, match="image is missing"):
        team.provider.deliver(team.delivery)
    assert team.list_names("outbox") == set()


def test_a_location_that_is_missing_closed_or_inside_the_campaign_is_refused_early(tmp_path: Path) -> None:
    def provider(location: str) -> FolderProvider:
        return Team(tmp_path, location, None, []).provider  # type: ignore[arg-type]

    with pytest.raises(ProviderError, match=r"the directory is missing.*mkdir -p"):
        provider(str(tmp_path.parent / "none")).check()
    with pytest.raises(ProviderError, match="outside the campaign"):
        provider("annotators").check()
    assert isinstance(open_storage("../share", tmp_path), LocalStorage)
    closed = tmp_path.parent / f"{tmp_path.name}-closed"
    closed.write_text("a file")
    with pytest.raises(ProviderError, match="the directory is missing"):
        provider(str(closed)).check()


def test_a_missing_permission_is_one_error(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(files, "write_bytes", refuse)
    with pytest.raises(ProviderError, match="Permission denied") as caught:
        team.provider.check()
    assert not caught.value.transient


@pytest.mark.integration
def test_a_bucket_that_is_missing_or_forbidden_is_refused(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server.set_environment(monkeypatch)
    with pytest.raises(StorageError, match="NoSuchBucket") as missing:
        S3Storage("s3://no-such-bucket-here/x").check()
    assert not missing.value.transient
    bucket = s3_server.new_bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="SignatureDoesNotMatch") as refused:
        S3Storage(f"s3://{bucket}/x").check()
    assert "wrong" not in str(refused.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setattr(s3, "_MAX_ATTEMPTS", 1)
    with pytest.raises(StorageError, match="out of reach") as away:
        S3Storage(f"s3://{bucket}/x").check()
    assert away.value.transient


def redrawn(team: Team, shift_px: float, digest: str) -> list[AnnotationTask]:
    """The batch's tasks in the opposite order, with moved boxes of another teacher."""
    return [
        task.model_copy(
            update={
                "rank": rank,
                "model_digest": digest,
                "predictions": tuple(
                    box.model_copy(update={"xyxy_px": (0.0, 0.0, 10.0 + shift_px, 10.0), "doubt": 0.25})
                    for box in task.predictions
                ),
            }
        )
        for rank, task in enumerate(reversed(team.tasks), start=1)
    ]


def test_open_images_are_listed_anew_and_a_copy_of_any_predrawn_boxes_finishes_nothing(any_team: Team) -> None:
    any_team.provider.deliver(any_team.delivery)
    published = any_team.read_outbox("batch-0003/manifest.jsonl")
    any_team.write_to_inbox("batch-0003/reviewed.csv", f"image,status\n{any_team.tasks[2].image_id},empty\n")
    for shift_px, digest in ((0, "cd" * 32), (0, "cd" * 32), (8, "ef" * 32)):  # one of them repeated after a kill
        assert set(any_team.provider.refresh(any_team.delivery, redrawn(any_team, shift_px, digest))) == set()
    lines = [json.loads(line) for line in (any_team.read_outbox("batch-0003/refreshed.jsonl") or b"").splitlines()]
    open_ids = [any_team.tasks[n].image_id for n in (3, 1, 0)]
    assert [(line["image_id"], line["rank"]) for line in lines] == list(zip(open_ids, (1, 3, 4), strict=True))
    assert {line["model_digest"] for line in lines} == {"ef" * 32}
    assert [box["doubt"] for box in lines[-1]["predictions"]] == [0.25]
    assert len(lines[-1]["earlier_predictions"]) == 1
    assert any_team.read_outbox("batch-0003/manifest.jsonl") == published
    for width in (18, 10):  # the newest boxes, and those before them, as a tool copies them
        any_team.write_to_inbox("batch-0003/a.json", any_team.coco([(0, "cat", (0, 0, width, 10))]))
        assert any_team.tasks[0].image_id not in any_team.collect()[0]
    any_team.write_to_inbox("batch-0003/a.json", any_team.coco([(0, "cat", (0, 0, 14, 10))]))
    assert any_team.tasks[0].image_id in any_team.collect()[0]


def test_a_label_to_be_checked_comes_back_as_one(team: Team) -> None:
    """Its boxes are drawn; unchanged it counts where it is marked, and nobody does it twice."""
    first, second, *others = team.tasks
    checks = [task.model_copy(update={"checks_batch": 1, "rank": task.rank}) for task in (first, second)]
    lines = "".join(task.model_dump_json() + "\n" for task in (*others, *checks))
    files.write_bytes(team.delivery.folder / "manifest.jsonl", lines.encode())
    ids = tuple(task.image_id for task in (*others, *checks))
    delivery = replace(team.delivery, image_ids=ids, checked_ids=(first.image_id, second.image_id))
    team.double_annotation_frac = 1.0
    team.provider.deliver(delivery)
    published = [json.loads(line) for line in (team.read_outbox("batch-0003/manifest.jsonl") or b"").splitlines()]
    assert {line["image_id"]: line["checks_batch"] for line in published} == dict.fromkeys(ids) | {
        first.image_id: 1,
        second.image_id: 1,
    }
    doubled = json.loads(team.read_outbox("batch-0003-second/coco.json") or b"")
    assert {image["image_id"] for image in doubled["images"]} == {task.image_id for task in others}
    kept = (team.read_outbox(f"batch-0003/preannotations/yolo/labels/{first.image_id}.txt") or b"").decode()
    team.write_to_inbox(f"batch-0003/{first.image_id}.txt", kept)
    assert team.provider.collect(delivery) == []  # a tool may have copied it
    team.write_to_inbox("batch-0003/reviewed.csv", f"image,annotator\n{first.image_id},anna\n")
    (raw,) = team.provider.collect(delivery)
    context = ValidationContext(
        3, {task.image_id: task for task in checks}, CLASSES, load_params(ROOT / "params.yaml").label_validation, False,
        datetime.now(UTC),
    )  # fmt: skip
    (label,) = validate_batch([raw], context, {}).primary
    assert (label.checks_batch, label.annotator, label.offered_batch) == (1, "anna", 3)
    shown = [(box.category, box.xyxy_px) for box in first.predictions]
    assert [box.category for box in label.boxes] == [category for category, _ in shown]
    assert np.allclose([box.xyxy_px for box in label.boxes], [corners for _, corners in shown], atol=0.01)
