"""Batches of CVAT: offered once, collected by the state of jobs, taken back, drawn anew, made again."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from flows.annotation.annotation_rules import read_validation_context
from flows.annotation.providers.base import LabelingProgress, ProviderError
from flows.annotation.providers.cvat_annotations import ABOUT, SKIP
from flows.annotation.validation import validate_batch
from tasks.data.schemas import LabelBatch
from tasks.params import load_params
from tasks.storage import files
from tests.flows.annotation.cvat.conftest import Team
from tests.flows.annotation.providers.label_studio_users import BOXES, CLASSES
from tests.flows.small_campaign import REPOSITORY

CUP, FORK = CLASSES


def test_a_batch_is_a_task_with_images_and_boxes(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(3)))
    (project,) = team.fake.projects.values()
    assert delivery.receipt == f"{team.fake.url}/projects/{project.number}"
    assert project.name.startswith("table-0 (")
    (task,) = team.fake.tasks.values()
    assert task.name == f"Batch 1 [{delivery.key[:12]}]"
    expected = [f"{rank:04d}-{image_id}.png" for rank, image_id in enumerate(delivery.image_ids, start=1)]
    assert [name for name, *_ in task.frames] == expected
    assert task.uploading[expected[1]] == (team.workspace.images / "1.png").read_bytes()
    assert [(job.start, job.stop) for job in team.fake.jobs.values()] == [(0, 1), (2, 2)]
    fork, cup = team.fake.shapes(delivery.image_ids[0])  # the less sure one first
    assert (cup["points"], cup["score"], cup["source"]) == (list(BOXES[0]), 0.9, "auto")
    score_cup, note_cup = (attribute["value"] for attribute in cup["attributes"])
    assert (score_cup, note_cup) == ("0.90", "doubt 0.10")
    assert [attribute["value"] for attribute in fork["attributes"]] == ["0.40", "doubt 0.60"]
    job, frame = team.fake.job_of(delivery.image_ids[1])
    (tag,) = [tag for tag in job.annotations["tags"] if tag["frame"] == frame]
    assert tag["label_id"] == team.fake.label(job, ABOUT)
    assert tag["attributes"][0]["value"] == "Batch 1, rank 2: uncertainty 0.93, mostly by entropy"
    assert not (team.workspace.root / ".gleaner" / "cvat").exists()


def test_a_repeated_delivery_changes_nothing(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(3)))
    team.fake.draw(delivery.image_ids[0], (CUP, (1.0, 2.0, 30.0, 40.0)))
    before = [dict(job.annotations) for job in team.fake.jobs.values()]
    first_call = len(team.fake.calls)
    assert team.provider.deliver(delivery) == delivery.receipt
    assert [job.annotations for job in team.fake.jobs.values()] == before
    assert {call.split()[0] for call in team.fake.calls[first_call:]} == {"GET"}


def test_only_finished_jobs_are_collected_and_later_changes_too(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(4)))
    first, second, third, fourth = delivery.image_ids
    team.fake.draw(first, (CUP, (1.0, 2.0, 30.0, 40.0)), (FORK, (50.5, 60.0, 90.0, 99.25)))
    team.fake.draw(second)
    team.fake.draw(third, (CUP, (5.0, 5.0, 9.0, 9.0)))
    assert team.provider.collect(delivery) == []
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=4)
    team.fake.finish(first)
    answers = {raw["image_id"]: raw for raw in team.provider.collect(delivery)}
    assert set(answers) == {first, second}
    assert answers[first]["boxes"] == [
        {"category": CUP, "xyxy_px": [1.0, 2.0, 30.0, 40.0], "shape": "box"},
        {"category": FORK, "xyxy_px": [50.5, 60.0, 90.0, 99.25], "shape": "box"},
    ]
    assert (answers[first]["status"], answers[second]["status"]) == ("labeled", "empty")
    assert answers[first]["annotator"] == "ann"
    job, frame = team.fake.job_of(first)
    assert answers[first]["url"] == f"{team.fake.url}/tasks/{job.task}/jobs/{job.number}?frame={frame}"
    assert answers[first]["image_size_px"] == [320, 240]
    assert team.provider.status(delivery) == LabelingProgress(finished=2, open=2)
    team.fake.draw(first, (FORK, (1.0, 2.0, 30.0, 40.0)))
    team.fake.finish(fourth, user=None)
    later = {raw["image_id"]: raw for raw in team.provider.collect(delivery)}
    assert [box["category"] for box in later[first]["boxes"]] == [FORK]
    assert later[first]["finished_at"] > answers[first]["finished_at"]
    assert later[first]["answer_id"] == answers[first]["answer_id"]
    assert (later[third]["annotator"], len(later)) == ("unassigned", 4)


@pytest.mark.parametrize(
    ("stage", "state", "is_finished"),
    [
        ("annotation", "new", False),
        ("annotation", "in progress", False),
        ("annotation", "completed", True),
        ("annotation", "rejected", False),
        ("validation", "new", False),
        ("validation", "completed", True),
        ("acceptance", "new", True),
        ("acceptance", "completed", True),
        ("acceptance", "rejected", False),
    ],
)
def test_what_counts_as_finished(team: Team, stage: str, state: str, is_finished: bool) -> None:
    delivery = team.deliver(team.make_batch(1, [0]))
    (job,) = team.fake.jobs.values()
    job.stage, job.state = stage, state
    assert len(team.provider.collect(delivery)) == int(is_finished)


def test_an_image_with_the_tag_is_skipped(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(2)))
    skipped, other = delivery.image_ids
    team.fake.tag(skipped, SKIP)
    team.fake.finish(skipped)
    answers = {raw["image_id"]: raw for raw in team.provider.collect(delivery)}
    assert (answers[skipped]["status"], answers[skipped]["boxes"]) == ("skipped", [])
    assert (answers[other]["status"], len(answers[other]["boxes"])) == ("labeled", 2)


def test_withdrawn_images_leave_jobs_that_nobody_has_begun(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(6)))
    begun, kept, alone, gone, *last = delivery.image_ids
    team.fake.draw(begun)
    for _ in range(2):
        team.provider.withdraw(delivery, [begun, alone, *last])
    (task,) = team.fake.tasks.values()
    assert task.deleted == {2, 4, 5}
    assert [job.state for job in team.fake.jobs.values()] == ["in progress", "new", "rejected"]
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=3)
    team.fake.finish(begun)
    team.fake.finish(gone)
    assert {raw["image_id"] for raw in team.provider.collect(delivery)} == {begun, kept, gone}


def test_jobs_that_nobody_has_begun_are_drawn_anew(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(4)))
    begun, beside, third, fourth = delivery.image_ids
    team.fake.draw(begun, (CUP, (1.0, 2.0, 30.0, 40.0)))
    newest = team.tasks([0, 1, 2], teacher="b" * 64, box=1)
    for _ in range(2):
        assert team.provider.refresh(delivery, newest) == {third}
    assert [shape["points"] for shape in team.fake.shapes(third)] == [list(BOXES[0]), list(BOXES[1])]
    assert [shape["points"] for shape in team.fake.shapes(fourth)] == [list(BOXES[1]), list(BOXES[0])]
    assert [shape["points"] for shape in team.fake.shapes(begun)] == [[1.0, 2.0, 30.0, 40.0]]
    assert len(team.fake.shapes(beside)) == 2
    team.fake.draw(third, (CUP, (1.0, 2.0, 30.0, 40.0)))  # begun now, with the boxes of the newest teacher
    assert team.provider.refresh(delivery, newest) == {third}
    job, _ = team.fake.job_of(third)
    job.annotations["tags"] = []
    assert team.provider.refresh(delivery, newest) == set()


def test_a_share_of_the_images_is_in_two_jobs(team: Team) -> None:
    team.settings["double_annotation_frac"] = 0.5
    delivery = team.deliver(team.make_batch(1, range(4)))
    assert sorted(len(task.frames) for task in team.fake.tasks.values()) == [2, 4]
    second = next(task for task in team.fake.tasks.values() if "second look" in task.name)
    twice = second.frames[0][0][5:21]
    team.fake.draw(twice, (CUP, (1.0, 2.0, 30.0, 40.0)))
    team.fake.finish(twice)
    team.fake.finish(twice, "bob", second_look=True)
    answers = [raw for raw in team.provider.collect(delivery) if raw["image_id"] == twice]
    found = sorted((raw["annotator"], len(raw["boxes"])) for raw in answers)
    assert found == [("ann", 1), ("bob", 2)]
    assert team.provider.deliver(delivery) == delivery.receipt
    assert len(team.fake.tasks) == 2


def test_an_image_of_which_one_annotator_saw_older_boxes_is_not_refreshed(team: Team) -> None:
    team.settings["double_annotation_frac"] = 1.0
    delivery = team.deliver(team.make_batch(1, range(2)))
    team.fake.draw(delivery.image_ids[0])
    newest = team.tasks(range(2), teacher="b" * 64, box=1)
    assert team.provider.refresh(delivery, newest) == set()
    job, _ = team.fake.job_of(delivery.image_ids[0], second_look=True)
    assert job.annotations["shapes"][0]["points"] == list(BOXES[0])


def test_ground_truth_jobs_and_replicas_are_no_answers(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(2)))
    team.fake.add_job("ground_truth")
    team.fake.add_job("replica")
    assert team.provider.collect(delivery) == []


def test_the_images_of_a_task_that_a_person_deleted_are_offered_again(
    team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = team.deliver(team.make_batch(1, range(3)))
    team.fake.delete_tasks()
    assert team.provider.collect(delivery) == []
    assert "Batch 1: the task with 3 images was deleted in" in caplog.text
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=3)
    assert len(team.fake.tasks) == 1


def test_a_deleted_project_is_reported_and_created_again(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(2)))
    team.fake.projects.clear()
    team.fake.delete_tasks()
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=0)
    team.provider.withdraw(delivery, delivery.image_ids)
    assert team.provider.refresh(delivery, team.tasks(range(2), teacher="b" * 64)) == ()
    with pytest.raises(ProviderError, match="project was deleted with 2 images of batch 1") as raised:
        team.provider.collect(delivery)
    assert not raised.value.transient
    assert team.provider.collect(delivery) == []
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=2)


def test_a_reviewer_does_not_become_the_annotator(team: Team) -> None:
    """The first collection says who it was: CVAT only knows to whom a job is assigned now."""
    delivery = team.deliver(team.make_batch(1, range(2)))
    team.fake.finish(delivery.image_ids[0], "ann")
    params = load_params(REPOSITORY / "params.yaml").model_copy(update={"classes": list(CLASSES)})
    now = datetime.now(UTC)
    context = read_validation_context(team.workspace, params, delivery, now, frozenset())
    labels = validate_batch(team.provider.collect(delivery), context, {}).primary
    stored = LabelBatch(batch=1, provider="cvat", collected_at=now.isoformat(), images=labels)
    files.write_json(team.workspace.label_batch(1), stored.model_dump(mode="json"))
    team.fake.finish(delivery.image_ids[0], "reviewer")
    assert {raw["annotator"] for raw in team.provider.collect(delivery)} == {"ann"}


def test_another_organization_and_another_campaign_have_their_own_project(
    team: Team, new_team: Callable[[], Team]
) -> None:
    team.deliver(team.make_batch(1, [0]))
    team.settings["cvat_organization"] = "acme"
    team.deliver(team.make_batch(1, [0]))
    other = new_team()
    other.deliver(other.make_batch(1, [0]))
    assert [project.organization for project in team.fake.projects.values()] == ["", "acme", ""]


def test_pages_are_read_to_the_last(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.annotation.providers.cvat_client._PAGE_SIZE", 1)
    team.settings["images_per_job"] = 1
    delivery = team.deliver(team.make_batch(1, range(3)))
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=3)
