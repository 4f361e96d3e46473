"""Selected images over many rounds: leased, annotated, late, changed, expired, offered again."""

import pytest

from flows.annotation.batches import (
    MANIFEST,
    all_annotation_batches,
    offered_tasks,
    read_annotation_batch,
    read_manifest,
)
from flows.annotation.providers.base import ProviderError
from flows.annotation.quarantine import read_entries
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tests.flows.lifecycle.fake_pipeline import (
    ADVISES_TO_STOP,
    BATCH_SIZE,
    LEASE_DAYS,
    PARAMS,
    POOL,
    batch_images,
    count_states,
    params_with,
    read_label_batch,
    run_fake_round,
)
from tests.flows.lifecycle.fake_provider import FakeProvider


def width_px(workspace: Workspace, image_id: str) -> float:
    box = read_labels(workspace.labels).current[image_id].label.boxes[0]
    return box.xyxy_px[2] - box.xyxy_px[0]


def test_a_part_of_a_batch_is_collected_and_the_rest_stays_with_the_annotators(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    first, second, third = batch_images(workspace, 1)
    fake_provider.annotate(1, first)
    assert run_fake_round(workspace, fake_provider, PARAMS).outcome == "completed"
    assert [label.image_id for label in read_label_batch(workspace, 1).images] == [first]
    assert set(read_label_batch(workspace, 1).leased) == {second, third}
    assert not {second, third} & set(batch_images(workspace, 2))
    assert fake_provider.open_images() == {second, third, *batch_images(workspace, 2)}
    assert count_states(workspace) == {"labeled": 1, "leased": 2 + BATCH_SIZE}


def test_a_run_collects_from_all_deliveries(workspace: Workspace, fake_provider: FakeProvider) -> None:
    first, second, third = batch_images(workspace, 1)
    fake_provider.annotate(1, first)
    run_fake_round(workspace, fake_provider, PARAMS)
    newer = batch_images(workspace, 2)[0]
    fake_provider.annotate(1, second, status="empty")
    fake_provider.annotate(2, newer, status="skipped")
    run_fake_round(workspace, fake_provider, PARAMS)
    batch = read_label_batch(workspace, 2)
    assert {label.image_id: label.offered_batch for label in batch.images} == {second: 1, newer: 2}
    assert batch.leased[third] == 1
    assert count_states(workspace) == {"labeled": 1, "empty": 1, "skipped": 1, "leased": 3 + BATCH_SIZE}


def test_a_label_is_stored_once_however_often_it_is_returned(workspace: Workspace, fake_provider: FakeProvider) -> None:
    for image_id in batch_images(workspace, 1):
        fake_provider.annotate(1, image_id)
    run_fake_round(workspace, fake_provider, PARAMS)
    for _ in range(2):
        waiting = run_fake_round(workspace, fake_provider, PARAMS)
        assert (waiting.outcome, waiting.round_number) == ("waiting_for_labels", 1)
    assert "batch 2: 0 finished, 3 open" in waiting.message
    assert not workspace.label_batch(2).exists()


def test_a_changed_label_supersedes_and_its_history_stays(workspace: Workspace, fake_provider: FakeProvider) -> None:
    first = batch_images(workspace, 1)[0]
    fake_provider.annotate(1, first, width_px=10, seconds_spent=30.0)
    run_fake_round(workspace, fake_provider, PARAMS)
    fake_provider.annotate(1, first, width_px=12, seconds_spent=42.0)
    assert run_fake_round(workspace, fake_provider, PARAMS).round_number == 2
    assert width_px(workspace, first) == 12
    store = read_labels(workspace.labels)
    assert [(label.offered_batch, len(label.boxes)) for label in store.all_annotations[first]] == [(1, 1), (1, 1)]
    assert read_label_batch(workspace, 1).images[0].boxes[0].xyxy_px[2] == 12  # 2 + 10: unchanged
    assert store.minutes_spent == pytest.approx(
        42 / 60
    )  # the reported time of an annotation includes that of the one it replaces
    fake_provider.annotate(1, first, width_px=10)  # changed back
    run_fake_round(workspace, fake_provider, PARAMS)
    assert width_px(workspace, first) == 10


def test_a_lease_expires_and_the_image_is_offered_again(workspace: Workspace, fake_provider: FakeProvider) -> None:
    first, second, third = batch_images(workspace, 1)
    fake_provider.annotate(1, first)
    fake_provider.advance_days(LEASE_DAYS - 1)
    run_fake_round(workspace, fake_provider, PARAMS)
    assert {second, third} <= fake_provider.open_images()
    fake_provider.advance_days(1)
    fake_provider.annotate(2, batch_images(workspace, 2)[0])
    run_fake_round(workspace, fake_provider, PARAMS)
    assert not set(read_label_batch(workspace, 2).leased) & {second, third}
    assert count_states(workspace)["leased"] == 2 + BATCH_SIZE
    offered_again = {second, third} & set(batch_images(workspace, 3))
    assert count_states(workspace).get("expired", 0) == 2 - len(offered_again)
    for _ in range(6):  # they are selected again some time
        fake_provider.annotate(newest_batch(workspace), batch_images(workspace, newest_batch(workspace))[0])
        run_fake_round(workspace, fake_provider, PARAMS)
    selected_again = {
        image for number in range(3, newest_batch(workspace) + 1) for image in batch_images(workspace, number)
    }
    assert {second, third} <= selected_again


def newest_batch(workspace: Workspace) -> int:
    return max(delivery.batch for delivery in all_annotation_batches(workspace) if delivery.image_ids)


def test_without_new_labels_no_lease_expires(workspace: Workspace, fake_provider: FakeProvider) -> None:
    """There is no new round that could offer the images again."""
    fake_provider.advance_days(10 * LEASE_DAYS)
    assert run_fake_round(workspace, fake_provider, PARAMS).outcome == "waiting_for_labels"
    assert fake_provider.open_images() == set(batch_images(workspace, 1))


def reoffered_image(workspace: Workspace, fake_provider: FakeProvider) -> tuple[str, int]:
    """Return an image of batch 1 whose lease expired, and the newest batch, which offers it again."""
    first, *others = batch_images(workspace, 1)
    fake_provider.annotate(1, first)
    run_fake_round(workspace, fake_provider, PARAMS)
    fake_provider.advance_days(LEASE_DAYS)
    while True:
        number = newest_batch(workspace)
        again = set(others) & set(batch_images(workspace, number))
        if number > 1 and again:
            return min(again), number
        fake_provider.annotate(number, batch_images(workspace, number)[0])
        run_fake_round(workspace, fake_provider, PARAMS)


def test_a_late_label_of_a_withdrawn_image_is_taken_and_the_new_offer_is_withdrawn(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    late, number = reoffered_image(workspace, fake_provider)
    assert late in fake_provider.open_images()
    fake_provider.annotate(1, late, width_px=11)
    run_fake_round(workspace, fake_provider, PARAMS)
    assert late not in fake_provider.open_images()
    assert read_labels(workspace.labels).current[late].label.offered_batch == 1
    fake_provider.annotate(number, late, width_px=13)  # an annotator had opened it before
    run_fake_round(workspace, fake_provider, PARAMS)
    assert width_px(workspace, late) == 13
    assert [label.offered_batch for label in read_labels(workspace.labels).all_annotations[late]] == [1, number]


def test_an_older_label_that_is_returned_late_is_secondary(workspace: Workspace, fake_provider: FakeProvider) -> None:
    late, number = reoffered_image(workspace, fake_provider)
    finished_first = fake_provider.now.isoformat()
    fake_provider.annotate(number, late, width_px=13)
    run_fake_round(workspace, fake_provider, PARAMS)
    fake_provider.annotate(1, late, width_px=11, finished_at=finished_first)
    fake_provider.annotate(number, next(image for image in batch_images(workspace, number) if image != late))
    run_fake_round(workspace, fake_provider, PARAMS)
    assert width_px(workspace, late) == 13
    assert [label.offered_batch for label in read_labels(workspace.labels).all_annotations[late]] == [number, 1]


def test_a_rejected_annotation_can_be_corrected_at_the_provider(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    first = batch_images(workspace, 1)[0]
    fake_provider.annotate(1, first, width_px=500)
    with pytest.raises(UserError, match="number of valid annotations is 0 of 1"):
        run_fake_round(workspace, fake_provider, PARAMS)
    assert run_fake_round(workspace, fake_provider, PARAMS).outcome == "waiting_for_labels"  # reported once
    assert len(read_entries(workspace)) == 1
    assert count_states(workspace) == {"leased": BATCH_SIZE}
    fake_provider.annotate(1, first)
    assert run_fake_round(workspace, fake_provider, PARAMS).round_number == 1
    assert width_px(workspace, first) == 10


@pytest.mark.parametrize(("rule", "outcome"), [("skip", "waiting_for_labels"), ("proceed", "completed")])
def test_few_labels_wait_until_all_leases_expire(
    workspace: Workspace, fake_provider: FakeProvider, rule: str, outcome: str
) -> None:
    settings = params_with(on_few_labels=rule, min_new_labels=2, lease_days=LEASE_DAYS)
    fake_provider.annotate(1, batch_images(workspace, 1)[0])
    result = run_fake_round(workspace, fake_provider, settings)
    assert result.outcome == outcome
    if rule == "skip":
        assert "1 image is newly labeled, fewer than nightly.min_new_labels" in result.message
        fake_provider.advance_days(LEASE_DAYS)  # the leases of the others expire
        assert run_fake_round(workspace, fake_provider, settings).outcome == "completed"


def test_no_further_batch_is_offered_above_max_pending_images(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    settings = params_with(max_pending_images=2, lease_days=LEASE_DAYS)
    first, second, third = batch_images(workspace, 1)
    fake_provider.annotate(1, first)
    held_back = run_fake_round(workspace, fake_provider, settings)
    assert held_back.outcome == "completed"
    assert held_back.message == "Batch 2 offers no image: 2 images are still with the annotators (tool)."
    assert batch_images(workspace, 2) == ()
    assert fake_provider.open_images() == {second, third}
    fake_provider.annotate(1, second)
    run_fake_round(workspace, fake_provider, settings)
    assert {label.offered_batch for label in read_label_batch(workspace, 2).images} == {1}
    assert len(batch_images(workspace, 3)) == BATCH_SIZE
    assert (workspace.warm_start / "teacher.pth").read_text() == "of round 1"


def test_open_tasks_that_nobody_has_begun_get_the_newest_teacher(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    first, begun, untouched = batch_images(workspace, 1)
    fake_provider.begin(1, begun)
    fake_provider.annotate(1, first)
    run_fake_round(workspace, fake_provider, PARAMS)
    tasks = fake_provider.state["batches"]["1"]["tasks"]
    assert {image: tasks[image].get("teacher") for image in tasks} == {first: None, begun: None, untouched: "1"}
    delivery = read_annotation_batch(workspace, 1)
    assert delivery is not None
    assert delivery.refreshed_round == 1
    assert {task.image_id: task.model_digest for task in offered_tasks(delivery)} == {
        first: "0",
        begun: "0",
        untouched: "1",
    }
    assert {task.model_digest for task in read_manifest(delivery.folder / MANIFEST)} == {"0"}  # what was offered
    fake_provider.annotate(1, begun)
    run_fake_round(workspace, fake_provider, params_with(refresh_open=False, lease_days=LEASE_DAYS))
    assert fake_provider.state["batches"]["1"]["tasks"][untouched]["teacher"] == "1"
    assert run_fake_round(workspace, fake_provider, PARAMS).outcome == "completed"  # switched on again: made good
    assert fake_provider.state["batches"]["1"]["tasks"][untouched]["teacher"] == "2"
    assert run_fake_round(workspace, fake_provider, PARAMS).outcome == "waiting_for_labels"


def test_a_provider_that_refuses_to_refresh_holds_up_nothing_and_is_asked_again(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    first, *_, untouched = batch_images(workspace, 1)
    fake_provider.annotate(1, first)

    def refuse(call: str) -> None:
        if call == "refresh":
            raise ProviderError("tool", "refresh failed")

    with pytest.raises(ProviderError, match="refresh failed"):
        run_fake_round(workspace, FakeProvider(fake_provider.path, before=refuse), PARAMS)
    assert len(batch_images(workspace, 2)) == BATCH_SIZE
    assert set(batch_images(workspace, 2)) <= fake_provider.open_images()
    run_fake_round(workspace, fake_provider, PARAMS)
    assert fake_provider.state["batches"]["1"]["tasks"][untouched]["teacher"] == "1"


def test_a_batch_is_held_while_stopping_is_advised_and_offered_once_a_parameter_changes(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    """It goes on collecting and training meanwhile, and resumes with the batch it had chosen."""
    hold, advise = (params_with(stop=stop, lease_days=LEASE_DAYS) for stop in ("hold", "advise"))
    (workspace.root / ADVISES_TO_STOP).touch()
    first, second, third = batch_images(workspace, 1)
    fake_provider.annotate(1, first)
    held = run_fake_round(workspace, fake_provider, hold)
    assert held.outcome == "completed"
    assert held.message.startswith("Batch 2 is held back: nothing more will come. To offer it all the same, set")
    assert fake_provider.open_images() == {second, third}
    assert run_fake_round(workspace, fake_provider, hold).outcome == "waiting_for_labels"
    fake_provider.annotate(1, second)
    fake_provider.annotate(1, third)
    run_fake_round(workspace, fake_provider, hold)  # trains on them
    assert {label.image_id for label in read_label_batch(workspace, 2).images} == {second, third}
    for _ in range(2):
        idle = run_fake_round(workspace, fake_provider, hold)
        assert (idle.outcome, idle.round_number) == ("held", 2)
        assert idle.message.startswith("Batch 3 is held back")
    assert fake_provider.open_images() == set()
    resumed = run_fake_round(workspace, fake_provider, advise)
    assert (resumed.outcome, resumed.round_number) == ("completed", 2)
    assert fake_provider.open_images() == set(batch_images(workspace, 3))
    assert len(batch_images(workspace, 3)) == BATCH_SIZE


def test_a_campaign_is_complete_when_every_image_is_labeled_and_continues_with_a_change(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    while fake_provider.open_images():
        for batch, image_id in fake_provider.all_tasks():
            if image_id in fake_provider.open_images():
                fake_provider.annotate(batch, image_id)
        last = run_fake_round(workspace, fake_provider, PARAMS)
    assert last.outcome == "pool_exhausted"
    assert run_fake_round(workspace, fake_provider, PARAMS).outcome == "pool_exhausted"
    assert count_states(workspace) == {"labeled": len(POOL)}
    batch, image_id = fake_provider.all_tasks()[0]
    fake_provider.annotate(batch, image_id, status="empty")
    run_fake_round(workspace, fake_provider, PARAMS)
    assert count_states(workspace) == {"labeled": len(POOL) - 1, "empty": 1}
