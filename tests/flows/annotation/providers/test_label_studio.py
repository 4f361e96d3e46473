"""The provider with a real Label Studio: delivery, status, collection, withdrawal."""

import io

import numpy as np
import pytest
from PIL import Image

from flows.annotation.batches import MANIFEST, read_manifest
from flows.annotation.providers.base import LabelingProgress
from flows.annotation.providers.label_studio_tasks import MODEL_VERSION
from tasks.data.image_decoding import open_rgb
from tasks.data.schemas import RunnerUp
from tasks.storage import files
from tests.flows.annotation.providers.conftest import LabelStudioServer
from tests.flows.annotation.providers.label_studio_users import (
    BOXES,
    CLASSES,
    Team,
    annotation_keys,
    make_region,
    project_id,
    task_ids,
)
from tests.services import S3Server

pytestmark = [pytest.mark.integration, pytest.mark.services]


def test_a_task_has_predictions_reason_and_image_id(team: Team, label_studio: LabelStudioServer) -> None:
    team.provider.check()
    delivery = team.deliver(team.make_batch(1, range(3)))
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=3)
    task = label_studio.owner.next_task(project_id(delivery))
    assert task is not None
    assert task["data"]["about"] == "Batch 1, rank 1: uncertainty 0.93, mostly by entropy"
    assert task["data"]["image_id"] == delivery.image_ids[0]
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == MODEL_VERSION
    assert [region["score"] for region in prediction["result"]] == [0.9, 0.4]
    assert label_studio.owner.fetch(task["data"]["image"]) == (team.workspace.images / "0.png").read_bytes()


def test_what_browsers_do_not_show_is_served_as_png_and_the_runner_up_is_in_the_region_s_note(
    team: Team, label_studio: LabelStudioServer
) -> None:
    path = team.workspace.images / "0.png"
    with Image.open(path) as drawn:
        drawn.convert("CMYK").save(path, format="TIFF")
    batch = team.make_batch(1, [0, 1])
    first, second = read_manifest(batch.folder / MANIFEST)
    cup, fork = first.predictions
    named = cup.model_copy(update={"runner_up": RunnerUp(category=CLASSES[1], score=0.25)})
    lines = [task.model_dump_json() for task in (first.model_copy(update={"predictions": (named, fork)}), second)]
    files.write_bytes(batch.folder / MANIFEST, "".join(f"{line}\n" for line in lines).encode())
    delivery = team.deliver(batch)
    task = label_studio.owner.next_task(project_id(delivery))
    assert task is not None
    with Image.open(io.BytesIO(label_studio.owner.fetch(task["data"]["image"]))) as shown:
        assert shown.format == "PNG"
        assert np.array_equal(np.asarray(shown), np.asarray(open_rgb(path)))
    regions = task["predictions"][0]["result"]
    assert [region.get("meta") for region in regions] == [{"text": [f"or {CLASSES[1]} (0.25)"]}, None]
    label_studio.owner.annotate(task["id"], *regions)
    other = label_studio.owner.next_task(project_id(delivery))
    assert other is not None
    assert label_studio.owner.fetch(other["data"]["image"]) == (team.workspace.images / "1.png").read_bytes()
    (raw,) = team.provider.collect(delivery)
    assert [box["category"] for box in raw["boxes"]] == list(CLASSES)
    assert raw["boxes"][0]["xyxy_px"] == pytest.approx(BOXES[0], abs=1e-3)
    assert raw["image_sha256"] == files.sha256_file(path)


def test_the_next_delivery_does_not_hide_the_predictions_of_the_last_one(
    team: Team, label_studio: LabelStudioServer
) -> None:
    """The label stream shows predictions of one model version per project only."""
    first = team.deliver(team.make_batch(1, [0], teacher="a" * 64))
    second = team.deliver(team.make_batch(2, [1], teacher="b" * 64))
    assert project_id(first) == project_id(second)
    for delivery in (first, second):
        task = label_studio.owner.next_task(project_id(delivery))
        assert task is not None
        assert task["data"]["delivery"] == delivery.key
        assert len(task["predictions"][0]["result"]) == len(BOXES)
        label_studio.owner.annotate(task["id"])


def test_two_annotators_a_skip_and_a_changed_annotation(team: Team, label_studio: LabelStudioServer) -> None:
    delivery = team.deliver(team.make_batch(1, range(4)))
    tasks = list(task_ids(label_studio.owner, delivery).values())
    owner, second = label_studio.owner, label_studio.second
    owner.annotate(tasks[0], make_region(CLASSES[0], *BOXES[0]), lead_time=4.5)
    second.annotate(tasks[0], make_region(CLASSES[1], *BOXES[1]))
    second.annotate(tasks[1], was_cancelled=True)
    changed = owner.annotate(tasks[2])
    owner.request("PATCH", f"/api/annotations/{changed}/", json={"result": [make_region(CLASSES[0], *BOXES[0])]})
    annotations = team.provider.collect(delivery)
    one, two, three, _ = delivery.image_ids
    assert annotation_keys(annotations) == {
        (one, owner.email, "labeled"),
        (one, second.email, "labeled"),
        (two, second.email, "skipped"),
        (three, owner.email, "labeled"),
    }
    first = next(raw for raw in annotations if raw["image_id"] == one and raw["annotator"] == owner.email)
    assert first["boxes"][0]["xyxy_px"] == pytest.approx(BOXES[0], abs=1e-3)
    assert first["seconds_spent"] == 4.5
    assert first["url"].endswith(f"/data?task={tasks[0]}")
    assert team.provider.status(delivery) == LabelingProgress(finished=3, open=1)


def test_each_delivery_returns_its_own_annotations(team: Team, label_studio: LabelStudioServer) -> None:
    first, second = (team.deliver(team.make_batch(number, [number])) for number in (1, 2))
    for delivery in (first, second):
        (task,) = task_ids(label_studio.owner, delivery).values()
        label_studio.owner.annotate(task, make_region(CLASSES[0], *BOXES[0]))
    for delivery in (first, second):
        assert [raw["image_id"] for raw in team.provider.collect(delivery)] == list(delivery.image_ids)


def test_a_share_is_shown_to_two_annotators_and_no_more(team: Team, label_studio: LabelStudioServer) -> None:
    team.double_annotation_frac = 0.5
    delivery = team.deliver(team.make_batch(1, range(4)))
    shown: list[int] = []
    while task := label_studio.owner.next_task(project_id(delivery)):
        label_studio.owner.annotate(task["id"])
        shown.append(task["id"])
    again: list[int] = []
    while task := label_studio.second.next_task(project_id(delivery)):
        label_studio.second.annotate(task["id"])
        again.append(task["id"])
    assert (len(shown), len(again)) == (4, 2)
    assert len(annotation_keys(team.provider.collect(delivery))) == 6


def test_withdrawn_tasks_leave_the_stream_and_late_annotations_are_collected(
    team: Team, label_studio: LabelStudioServer
) -> None:
    delivery = team.deliver(team.make_batch(1, range(4)))
    finished, begun, late, idle = task_ids(label_studio.owner, delivery).values()
    label_studio.owner.annotate(finished)
    label_studio.second.request(
        "POST", f"/api/tasks/{begun}/drafts", json={"result": [make_region(CLASSES[0], *BOXES[0])]}
    )
    for _ in range(2):
        team.provider.withdraw(delivery, delivery.image_ids)
    assert team.provider.status(delivery) == LabelingProgress(finished=1, open=1)
    shown = label_studio.owner.next_task(project_id(delivery))
    assert shown is not None
    assert shown["id"] == begun
    label_studio.second.annotate(late)
    label_studio.second.annotate(begun, make_region(CLASSES[0], *BOXES[0]))
    assert {raw["image_id"] for raw in team.provider.collect(delivery)} == set(delivery.image_ids[:3])
    assert label_studio.owner.next_task(project_id(delivery)) is None
    assert idle in task_ids(label_studio.owner, delivery).values()


def test_images_in_a_bucket_are_shown_through_label_studio_with_its_own_credentials(
    team: Team, label_studio: LabelStudioServer, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.set_environment(monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "this one stays here")
    bucket, image = s3_server.new_bucket(), team.workspace.images / "0.png"
    s3_server.client().upload_file(str(image), bucket, "data/images/0.png")
    delivery = team.deliver(team.make_batch(1, [0], bucket=bucket))
    assert team.provider.deliver(delivery) == delivery.receipt
    storages = label_studio.owner.sdk.import_storage.s3.list(project=project_id(delivery))
    assert [(storage.bucket, storage.presign) for storage in storages] == [(bucket, False)]
    task = label_studio.owner.next_task(project_id(delivery))
    assert task is not None
    assert "Signature" not in task["data"]["image"]
    assert label_studio.owner.fetch(task["data"]["image"]) == image.read_bytes()
    label_studio.owner.annotate(task["id"])
    (raw,) = team.provider.collect(delivery)
    assert raw["image_sha256"] is None
