"""Open tasks get the newest teacher's rank and boxes in a real Label Studio; what people have begun stays."""

from pathlib import Path
from typing import Any

import pytest

from flows.annotation.batches import read_manifest
from flows.annotation.providers.base import AnnotationBatch
from tasks.data.schemas import AnnotationTask
from tests.flows.annotation.providers.browser import label_stream, screenshot
from tests.flows.annotation.providers.conftest import LabelStudioServer
from tests.flows.annotation.providers.label_studio_users import (
    BOXES,
    CLASSES,
    Annotator,
    Team,
    make_region,
    project_id,
    task_ids,
)

pytestmark = [pytest.mark.integration, pytest.mark.services]
NEWER = "b" * 64


def redrawn(delivery: AnnotationBatch) -> list[AnnotationTask]:
    """The tasks in the opposite order, the last without any box, the others with the first box moved by 5 px."""
    tasks = read_manifest(delivery.folder / "manifest.jsonl")
    x1, y1, x2, y2 = BOXES[0]
    box = tasks[0].predictions[0].model_copy(update={"xyxy_px": (x1 + 5, y1, x2 + 5, y2), "doubt": 0.5})
    return [
        task.model_copy(
            update={
                "rank": rank,
                "reason": "newer",
                "model_digest": NEWER,
                "predictions": () if rank == len(tasks) else (box,),
            }
        )
        for rank, task in enumerate(reversed(tasks), start=1)
    ]


def read_tasks(annotator: Annotator, delivery: AnnotationBatch) -> dict[str, Any]:
    numbers = task_ids(annotator, delivery)
    return {image: annotator.request("GET", f"/api/tasks/{number}") for image, number in numbers.items()}


def drawn_x(task: Any) -> list[float]:
    """Left edges of the pre-drawn boxes in percent; asserts at most one prediction."""
    assert len(task["predictions"]) <= 1
    return [round(region["value"]["x"], 3) for found in task["predictions"] for region in found["result"]]


def stream_order(annotator: Annotator, project: int) -> list[str]:
    """Images of all tasks as the Data Manager shows them in the tab by priority, and so its label stream."""
    (view,) = annotator.request("GET", f"/api/dm/views?project={project}")
    assert view["data"]["title"] == "by priority"
    found = annotator.request("GET", f"/api/tasks?project={project}&view={view['id']}&fields=all")
    return [task["data"]["image_id"] for task in found["tasks"]]


def test_open_tasks_are_ranked_and_drawn_anew_and_begun_ones_stay(team: Team, label_studio: LabelStudioServer) -> None:
    delivery = team.deliver(team.make_batch(1, range(5)))
    project, numbers = project_id(delivery), task_ids(label_studio.owner, delivery)
    finished, begun, skipped, interrupted, untouched = delivery.image_ids
    assert stream_order(label_studio.owner, project) == list(delivery.image_ids)
    label_studio.second.annotate(numbers[finished], make_region(CLASSES[0], *BOXES[0]), lead_time=8.5)
    label_studio.second.annotate(numbers[skipped], was_cancelled=True)
    draft = {"result": [make_region(CLASSES[1], *BOXES[1])], "lead_time": 3.0}
    label_studio.second.request("POST", f"/api/tasks/{numbers[begun]}/drafts", json=draft)
    before = read_tasks(label_studio.owner, delivery)
    answers = team.provider.collect(delivery)
    (old,) = before[interrupted]["predictions"]  # a run was killed after it had deleted it
    label_studio.owner.sdk.predictions.delete(id=old["id"])
    newer = redrawn(delivery)
    for _ in range(2):  # the second repeats it after a kill
        refreshed = team.provider.refresh(delivery, newer)
        assert set(refreshed) == {interrupted, untouched}
    after = read_tasks(label_studio.owner, delivery)
    for image in (finished, begun, skipped):
        assert drawn_x(after[image]) == drawn_x(before[image])
        assert after[image]["data"] == before[image]["data"]
    assert len(label_studio.second.request("GET", f"/api/tasks/{numbers[begun]}")["drafts"]) == 1
    for image, rank in ((untouched, 1), (interrupted, 2)):
        assert drawn_x(after[image]) == [round(100 * (BOXES[0][0] + 5) / 320, 3)]
        assert after[image]["predictions"][0]["model_version"] == "gleaner"
        data = after[image]["data"]
        assert (data["rank"], data["priority"], data["reason"]) == (rank, f"{rank:06d}", "newer")
        assert data["about"] == f"Batch 1, rank {rank}: newer"
        assert data["teacher"] == NEWER[:12]
        assert {key: data[key] for key in ("image", "image_id", "delivery")} == {
            key: before[image]["data"][key] for key in ("image", "image_id", "delivery")
        }
    assert team.provider.collect(delivery) == answers
    order = stream_order(label_studio.owner, project)
    assert order.index(untouched) < order.index(interrupted)
    label_studio.second.annotate(numbers[untouched], make_region(CLASSES[0], *BOXES[0]))
    assert set(team.provider.refresh(delivery, newer)) == {interrupted, untouched}  # its annotator found the new boxes


def test_a_task_loses_boxes_that_the_newer_teacher_does_not_see(team: Team, label_studio: LabelStudioServer) -> None:
    delivery = team.deliver(team.make_batch(1, range(2)))
    assert set(team.provider.refresh(delivery, redrawn(delivery))) == set(delivery.image_ids)
    tasks = read_tasks(label_studio.owner, delivery)
    assert [len(drawn_x(tasks[image])) for image in delivery.image_ids] == [0, 1]


def begin_in_browser(annotator: Annotator, project: int, picture: Path) -> None:
    """Delete the second pre-drawn box of the first task, without submitting; Label Studio keeps that as a draft."""
    with label_stream(annotator, project) as page:
        page.get_by_text("Batch 1, rank 1: ").wait_for()
        page.wait_for_function("[...document.images].some(image => image.naturalWidth === 320)")
        page.get_by_text("0.40").click()  # in the list of regions
        with page.expect_response(lambda response: "/drafts" in response.url and response.request.method == "POST"):
            page.keyboard.press("Backspace")
        screenshot(page, picture)


def test_an_annotator_keeps_what_they_began_and_then_gets_the_newest_order(
    team: Team, label_studio: LabelStudioServer, artifacts: Path
) -> None:
    """In a browser, as annotators see it."""
    delivery = team.deliver(team.make_batch(1, range(3)))
    project, numbers = project_id(delivery), task_ids(label_studio.owner, delivery)
    begun, _, last = delivery.image_ids
    begin_in_browser(label_studio.second, project, artifacts / "begun.png")
    address = f"/api/tasks/{numbers[begun]}"
    before = label_studio.second.request("GET", address)["drafts"]
    assert len(before) == 1
    team.provider.refresh(delivery, redrawn(delivery))
    assert label_studio.second.request("GET", address)["drafts"] == before
    with label_stream(label_studio.second, project) as page:
        page.get_by_text("Batch 1, rank 1: uncertainty").wait_for()
        page.get_by_text("0.90").wait_for()
        assert page.get_by_text("0.40").count() == 0
        screenshot(page, artifacts / "kept.png")
        page.get_by_role("button", name="Submit", exact=False).first.click()
        page.get_by_text("Batch 1, rank 1: newer").wait_for()
        screenshot(page, artifacts / "newest.png")
    (answer,) = team.provider.collect(delivery)
    assert (answer["image_id"], len(answer["boxes"])) == (begun, 1)
    assert read_tasks(label_studio.owner, delivery)[last]["data"]["rank"] == 1
