"""What becomes of picked images over many nights: leased, answered, late, changed, expired, offered again."""

import pytest

from flows.labels.deliveries import all_deliveries
from flows.labels.quarantine import read_entries
from tasks.errors import UserError
from tasks.label_store import read_labels
from tasks.paths import Workspace
from tests.flows.lifecycle.label_tool import LabelTool
from tests.flows.lifecycle.plain_nights import (
    BATCH,
    LEASE_DAYS,
    PARAMS,
    POOL,
    batch_file,
    images,
    params_with,
    plain_night,
    states,
)


def width_px(workspace: Workspace, image_id: str) -> float:
    box = read_labels(workspace.labels).answers[image_id].label.boxes[0]
    return box.xyxy_px[2] - box.xyxy_px[0]


def test_a_part_of_a_batch_is_collected_and_the_rest_stays_with_the_annotators(
    workspace: Workspace, tool: LabelTool
) -> None:
    first, second, third = images(workspace, 1)
    tool.answer(1, first)
    assert plain_night(workspace, tool, PARAMS).outcome == "finished"
    assert [label.image_id for label in batch_file(workspace, 1).images] == [first]
    assert set(batch_file(workspace, 1).leased) == {second, third}
    assert not {second, third} & set(images(workspace, 2))
    assert tool.open_images() == {second, third, *images(workspace, 2)}
    assert states(workspace) == {"labeled": 1, "leased": 2 + BATCH}


def test_a_night_collects_from_all_deliveries(workspace: Workspace, tool: LabelTool) -> None:
    first, second, third = images(workspace, 1)
    tool.answer(1, first)
    plain_night(workspace, tool, PARAMS)
    newer = images(workspace, 2)[0]
    tool.answer(1, second, status="empty")
    tool.answer(2, newer, status="skipped")
    plain_night(workspace, tool, PARAMS)
    batch = batch_file(workspace, 2)
    assert {label.image_id: label.offered_in for label in batch.images} == {second: 1, newer: 2}
    assert batch.leased[third] == 1
    assert states(workspace) == {"labeled": 1, "empty": 1, "skipped": 1, "leased": 3 + BATCH}


def test_the_same_label_counts_once_however_often_it_comes_back(workspace: Workspace, tool: LabelTool) -> None:
    for image_id in images(workspace, 1):
        tool.answer(1, image_id)
    plain_night(workspace, tool, PARAMS)
    for _ in range(2):
        waiting = plain_night(workspace, tool, PARAMS)
        assert (waiting.outcome, waiting.round_number) == ("waiting", 1)
    assert "batch 2: 0 finished, 3 open" in waiting.message
    assert not workspace.label_batch(2).exists()


def test_a_changed_label_supersedes_and_its_history_stays(workspace: Workspace, tool: LabelTool) -> None:
    first = images(workspace, 1)[0]
    tool.answer(1, first, width_px=10, seconds_spent=30.0)
    plain_night(workspace, tool, PARAMS)
    tool.answer(1, first, width_px=12, seconds_spent=42.0)
    assert plain_night(workspace, tool, PARAMS).round_number == 2
    assert width_px(workspace, first) == 12
    store = read_labels(workspace.labels)
    assert [(label.offered_in, len(label.boxes)) for label in store.given[first]] == [(1, 1), (1, 1)]
    assert batch_file(workspace, 1).images[0].boxes[0].xyxy_px[2] == 12  # 2 + 10: untouched
    assert store.minutes_spent == pytest.approx(42 / 60)  # the tool's time of an answer includes what it replaces
    tool.answer(1, first, width_px=10)  # and back again
    plain_night(workspace, tool, PARAMS)
    assert width_px(workspace, first) == 10


def test_a_lease_ends_and_the_image_is_offered_again(workspace: Workspace, tool: LabelTool) -> None:
    first, second, third = images(workspace, 1)
    tool.answer(1, first)
    tool.wait(LEASE_DAYS - 1)
    plain_night(workspace, tool, PARAMS)
    assert {second, third} <= tool.open_images()
    tool.wait(1)
    tool.answer(2, images(workspace, 2)[0])
    plain_night(workspace, tool, PARAMS)
    assert not set(batch_file(workspace, 2).leased) & {second, third}
    assert states(workspace)["leased"] == 2 + BATCH
    offered_again = {second, third} & set(images(workspace, 3))
    assert states(workspace).get("expired", 0) == 2 - len(offered_again)
    for _ in range(6):  # sooner or later they are picked again
        tool.answer(newest(workspace), images(workspace, newest(workspace))[0])
        plain_night(workspace, tool, PARAMS)
    picked_again = {image for number in range(3, newest(workspace) + 1) for image in images(workspace, number)}
    assert {second, third} <= picked_again


def newest(workspace: Workspace) -> int:
    return max(delivery.batch for delivery in all_deliveries(workspace) if delivery.image_ids)


def test_without_new_labels_no_lease_ends(workspace: Workspace, tool: LabelTool) -> None:
    """There is no new round that could offer the images again, so people had better keep them."""
    tool.wait(10 * LEASE_DAYS)
    assert plain_night(workspace, tool, PARAMS).outcome == "waiting"
    assert tool.open_images() == set(images(workspace, 1))


def offered_twice(workspace: Workspace, tool: LabelTool) -> tuple[str, int]:
    """An image of batch 1 whose lease ended, and the newest batch, which offers it again."""
    first, *others = images(workspace, 1)
    tool.answer(1, first)
    plain_night(workspace, tool, PARAMS)
    tool.wait(LEASE_DAYS)
    while True:
        number = newest(workspace)
        again = set(others) & set(images(workspace, number))
        if number > 1 and again:
            return min(again), number
        tool.answer(number, images(workspace, number)[0])
        plain_night(workspace, tool, PARAMS)


def test_a_late_label_of_a_withdrawn_image_is_taken_and_the_new_offer_is_withdrawn(
    workspace: Workspace, tool: LabelTool
) -> None:
    late, number = offered_twice(workspace, tool)
    assert late in tool.open_images()
    tool.answer(1, late, width_px=11)
    plain_night(workspace, tool, PARAMS)
    assert late not in tool.open_images()
    assert read_labels(workspace.labels).answers[late].label.offered_in == 1
    tool.answer(number, late, width_px=13)  # somebody had it on the screen already
    plain_night(workspace, tool, PARAMS)
    assert width_px(workspace, late) == 13
    assert [label.offered_in for label in read_labels(workspace.labels).given[late]] == [1, number]


def test_an_older_answer_that_comes_in_late_does_not_undo_newer_work(workspace: Workspace, tool: LabelTool) -> None:
    late, number = offered_twice(workspace, tool)
    finished_first = tool.now.isoformat()
    tool.answer(number, late, width_px=13)
    plain_night(workspace, tool, PARAMS)
    tool.answer(1, late, width_px=11, finished_at=finished_first)
    tool.answer(number, next(image for image in images(workspace, number) if image != late))
    plain_night(workspace, tool, PARAMS)
    assert width_px(workspace, late) == 13
    assert [label.offered_in for label in read_labels(workspace.labels).given[late]] == [number, 1]


def test_a_refused_answer_can_be_corrected_where_it_was_given(workspace: Workspace, tool: LabelTool) -> None:
    first = images(workspace, 1)[0]
    tool.answer(1, first, width_px=500)
    with pytest.raises(UserError, match="usable labels are 0 of 1"):
        plain_night(workspace, tool, PARAMS)
    assert plain_night(workspace, tool, PARAMS).outcome == "waiting"  # told once
    assert len(read_entries(workspace)) == 1
    assert states(workspace) == {"leased": BATCH}
    tool.answer(1, first)
    assert plain_night(workspace, tool, PARAMS).round_number == 1
    assert width_px(workspace, first) == 10


@pytest.mark.parametrize(("rule", "outcome"), [("skip", "waiting"), ("proceed", "finished")])
def test_few_labels_wait_as_long_as_waiting_helps(
    workspace: Workspace, tool: LabelTool, rule: str, outcome: str
) -> None:
    settings = params_with(on_few_labels=rule, min_labeled_images=2, lease_days=LEASE_DAYS)
    tool.answer(1, images(workspace, 1)[0])
    result = plain_night(workspace, tool, settings)
    assert result.outcome == outcome
    if rule == "skip":
        assert "1 images are newly labeled, fewer than nightly.min_labeled_images" in result.message
        tool.wait(LEASE_DAYS)  # nobody holds on to the others any more
        assert plain_night(workspace, tool, settings).outcome == "finished"


def test_where_annotators_are_behind_no_further_batch_is_offered(workspace: Workspace, tool: LabelTool) -> None:
    settings = params_with(max_open_images=2, lease_days=LEASE_DAYS)
    first, second, third = images(workspace, 1)
    tool.answer(1, first)
    held_back = plain_night(workspace, tool, settings)
    assert held_back.outcome == "finished"
    assert held_back.message == "Batch 2 asks for no image: 2 are still with the annotators (tool)."
    assert images(workspace, 2) == ()
    assert tool.open_images() == {second, third}
    tool.answer(1, second)
    plain_night(workspace, tool, settings)
    assert {label.offered_in for label in batch_file(workspace, 2).images} == {1}
    assert len(images(workspace, 3)) == BATCH
    assert (workspace.previous / "teacher.pth").read_text() == "of round 1"


def test_a_campaign_ends_when_every_image_is_answered_and_wakes_up_for_a_change(
    workspace: Workspace, tool: LabelTool
) -> None:
    while tool.open_images():
        for batch, image_id in tool.tasks():
            if image_id in tool.open_images():
                tool.answer(batch, image_id)
        last = plain_night(workspace, tool, PARAMS)
    assert last.outcome == "exhausted"
    assert plain_night(workspace, tool, PARAMS).outcome == "exhausted"
    assert states(workspace) == {"labeled": len(POOL)}
    batch, image_id = tool.tasks()[0]
    tool.answer(batch, image_id, status="empty")
    plain_night(workspace, tool, PARAMS)
    assert states(workspace) == {"labeled": len(POOL) - 1, "empty": 1}
