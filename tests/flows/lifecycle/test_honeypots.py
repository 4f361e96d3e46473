"""Honeypots: handed out with a batch, answered or taken back, kept apart from the labels, whatever is killed."""

from pathlib import Path

import pytest

from flows.annotation.batches import read_annotation_batch
from tasks.data.annotations import AnnotatedImage, write_annotated
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import Box
from tasks.reporting.people import measure_people
from tasks.storage import files
from tests.flows.lifecycle.fake_pipeline import (
    LEASE_DAYS,
    SEED,
    FaultInjector,
    SimulatedCrash,
    count_states,
    make_fake_campaign,
    params_with,
    read_label_batch,
    run_fake_round,
)
from tests.flows.lifecycle.fake_provider import FakeProvider
from tests.flows.lifecycle.test_crash_points import copy_campaign, snapshot

PARAMS = params_with(lease_days=LEASE_DAYS, max_pending_images=100, honeypot_frac=0.3)
KNOWN = Box(category="bright", xyxy_px=(2, 3, 12, 13))


@pytest.fixture
def campaign(tmp_path: Path) -> tuple[Workspace, FakeProvider]:
    """Batch 1 is with the annotators, with three new images and the seed image as a honeypot."""
    workspace = make_fake_campaign(tmp_path / "a" / "campaign")
    batch = read_label_batch(workspace, 0)
    seed = batch.images[0].model_copy(update={"status": "labeled", "boxes": (KNOWN,)})
    files.write_json(workspace.label_batch(0), batch.model_copy(update={"images": (seed,)}).model_dump(mode="json"))
    image = AnnotatedImage(SEED, f"{SEED}.png", 40, 32, (KNOWN,), 0)
    write_annotated(workspace.derived("assemble") / "labeled.parquet", [image], PARAMS.classes)
    provider = FakeProvider(tmp_path / "a" / "tool.json")
    run_fake_round(workspace, provider, PARAMS)
    return workspace, provider


def images_of(workspace: Workspace, batch: int) -> tuple[list[str], list[str]]:
    delivery = read_annotation_batch(workspace, batch)
    assert delivery is not None
    return list(delivery.new_ids), list(delivery.checked_ids)


def test_an_answer_is_scored_and_the_label_stays(campaign: tuple[Workspace, FakeProvider]) -> None:
    workspace, provider = campaign
    new, honeypots = images_of(workspace, 1)
    assert (len(new), honeypots) == (3, [SEED])
    provider.annotate(1, SEED, status="empty")
    provider.annotate(1, new[0])
    assert run_fake_round(workspace, provider, PARAMS).outcome == "completed"
    store = read_labels(workspace.labels)
    assert store.current[SEED].label.boxes == (KNOWN,)
    assert (len(store.all_annotations[SEED]), store.checks) == (1, {})
    assert [label.image_id for label in read_label_batch(workspace, 1).honeypots] == [SEED]
    (person,) = measure_people(store)
    assert (person.honeypots.images, person.honeypots.deleted, person.honeypots.f1) == (1, 1, 0.0)
    assert count_states(workspace)["labeled"] == 1  # a honeypot is no picked image
    assert images_of(workspace, 2)[1] == [SEED]  # answered, so it may measure again


def test_honeypots_make_no_round(campaign: tuple[Workspace, FakeProvider]) -> None:
    workspace, provider = campaign
    provider.annotate(1, SEED)
    assert run_fake_round(workspace, provider, PARAMS).outcome == "waiting_for_labels"
    provider.annotate(1, images_of(workspace, 1)[0][0])
    assert run_fake_round(workspace, provider, PARAMS).outcome == "completed"
    assert len(read_labels(workspace.labels).honeypots) == 1


def test_a_changed_answer_counts_from_the_next_batch_on(campaign: tuple[Workspace, FakeProvider]) -> None:
    workspace, provider = campaign
    new, _ = images_of(workspace, 1)
    provider.annotate(1, SEED, status="empty")
    provider.annotate(1, new[0])
    run_fake_round(workspace, provider, PARAMS)
    provider.annotate(1, SEED)
    provider.annotate(1, new[1])
    run_fake_round(workspace, provider, PARAMS)
    (answer,) = read_labels(workspace.labels).honeypots
    assert answer.status == "labeled"
    provider.annotate(1, new[2])
    run_fake_round(workspace, provider, PARAMS)
    assert read_label_batch(workspace, 3).honeypots == ()  # nothing new


def test_one_that_nobody_answers_stays_out_and_is_taken_back_when_its_lease_ends(
    campaign: tuple[Workspace, FakeProvider],
) -> None:
    workspace, provider = campaign
    new, _ = images_of(workspace, 1)
    provider.annotate(1, new[0])
    run_fake_round(workspace, provider, PARAMS)
    assert SEED in provider.open_images()
    assert read_labels(workspace.labels).leased[SEED] == 1
    assert images_of(workspace, 2)[1] == []  # it is with them
    provider.advance_days(LEASE_DAYS)
    provider.annotate(1, new[1])
    run_fake_round(workspace, provider, PARAMS)
    store = read_labels(workspace.labels)
    assert SEED not in store.leased
    assert (store.current[SEED].batch, store.honeypots) == (0, ())


def test_a_run_killed_at_any_effect_ends_in_the_same_state(
    campaign: tuple[Workspace, FakeProvider], tmp_path: Path
) -> None:
    workspace, provider = campaign
    provider.annotate(1, SEED, status="empty")
    provider.annotate(1, images_of(workspace, 1)[0][0])
    injector = FaultInjector()
    undisturbed = copy_campaign(tmp_path / "a", tmp_path / "no_fault")
    run_fake_round(*undisturbed, PARAMS, injector)
    expected = snapshot(*undisturbed)
    assert images_of(undisturbed[0], 2)[1] == [SEED]
    for number in range(1, len(injector.effect_names) + 1):
        killed = copy_campaign(tmp_path / "a", tmp_path / "killed")
        with pytest.raises(SimulatedCrash):
            run_fake_round(*killed, PARAMS, FaultInjector(number))
        for _ in range(2):
            run_fake_round(*killed, PARAMS)
        assert snapshot(*killed) == expected, f"killed {injector.effect_names[number - 1]} (effect {number})"
