"""Labels that are checked: handed out with a batch, answered, superseded with their history, whatever is killed."""

from pathlib import Path

import pytest

from flows.annotation.batches import read_annotation_batch
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tests.flows.lifecycle.fake_pipeline import (
    CHECKS_A_LABEL,
    LEASE_DAYS,
    PARAMS,
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


@pytest.fixture
def campaign(tmp_path: Path) -> tuple[Workspace, FakeProvider]:
    """Batch 1 is with the annotators, with three new images and the label of the seed image."""
    workspace = make_fake_campaign(tmp_path / "a" / "campaign")
    (workspace.root / CHECKS_A_LABEL).touch()
    provider = FakeProvider(tmp_path / "a" / "tool.json")
    run_fake_round(workspace, provider, PARAMS)
    return workspace, provider


def images_of(workspace: Workspace, batch: int) -> tuple[list[str], list[str]]:
    delivery = read_annotation_batch(workspace, batch)
    assert delivery is not None
    return list(delivery.new_ids), list(delivery.checked_ids)


def test_a_changed_answer_supersedes_the_label_and_keeps_it(campaign: tuple[Workspace, FakeProvider]) -> None:
    workspace, provider = campaign
    new, checked = images_of(workspace, 1)
    assert (len(new), checked) == (3, [SEED])
    provider.annotate(1, SEED, width_px=7)
    provider.annotate(1, new[0])
    result = run_fake_round(workspace, provider, PARAMS)
    assert (result.outcome, result.round_number) == ("completed", 1)
    store = read_labels(workspace.labels)
    answer = store.current[SEED]
    assert (answer.batch, answer.label.checks_batch, answer.label.status) == (1, 0, "labeled")
    assert [(label.status, label.annotator) for label in store.all_annotations[SEED]] == [
        ("empty", "imported"),
        ("labeled", "ann"),
    ]
    assert answer.picked == store.all_annotations[SEED][0]
    assert store.checks == {SEED: True}
    assert count_states(workspace)["labeled"] == 1  # a check is no picked image


def test_an_unchanged_answer_confirms_the_label_and_it_is_not_asked_again(
    campaign: tuple[Workspace, FakeProvider],
) -> None:
    workspace, provider = campaign
    new, _ = images_of(workspace, 1)
    provider.annotate(1, SEED, status="empty")
    provider.annotate(1, new[0])
    run_fake_round(workspace, provider, PARAMS)
    assert read_labels(workspace.labels).checks == {SEED: False}
    assert images_of(workspace, 2)[1] == [new[0]]  # the other label


def test_a_skipped_check_leaves_the_label(campaign: tuple[Workspace, FakeProvider]) -> None:
    workspace, provider = campaign
    new, _ = images_of(workspace, 1)
    provider.annotate(1, SEED, status="skipped")
    provider.annotate(1, new[0])
    run_fake_round(workspace, provider, PARAMS)
    store = read_labels(workspace.labels)
    assert (store.current[SEED].batch, store.checks) == (0, {SEED: False})
    assert [label.status for label in read_label_batch(workspace, 1).other_annotations] == ["skipped"]


def test_a_check_stays_with_the_annotators_though_its_image_is_labeled(
    campaign: tuple[Workspace, FakeProvider],
) -> None:
    workspace, provider = campaign
    new, _ = images_of(workspace, 1)
    provider.annotate(1, new[0])
    run_fake_round(workspace, provider, PARAMS)
    assert SEED in provider.open_images()
    assert read_labels(workspace.labels).leased[SEED] == 1
    assert SEED not in images_of(workspace, 2)[1]  # it is with them
    provider.annotate(1, SEED, width_px=7)
    run_fake_round(workspace, provider, PARAMS)
    store = read_labels(workspace.labels)
    assert (store.current[SEED].batch, store.checks) == (2, {SEED: True})


def test_a_check_whose_lease_expires_is_withdrawn_and_the_label_stays(campaign: tuple[Workspace, FakeProvider]) -> None:
    workspace, provider = campaign
    new, _ = images_of(workspace, 1)
    provider.advance_days(LEASE_DAYS)
    provider.annotate(1, new[0])
    run_fake_round(workspace, provider, PARAMS)
    store = read_labels(workspace.labels)
    assert (store.checks, store.leased, store.current[SEED].batch) == ({}, {}, 0)
    assert SEED not in provider.open_images() | set(images_of(workspace, 2)[0])
    assert len(images_of(workspace, 2)[1]) == 1  # it may be asked for again, in its turn


def test_checks_are_no_new_labels(campaign: tuple[Workspace, FakeProvider]) -> None:
    workspace, provider = campaign
    waits = params_with(lease_days=LEASE_DAYS, max_pending_images=100, on_few_labels="skip", min_new_labels=1)
    provider.annotate(1, SEED, width_px=7)
    assert run_fake_round(workspace, provider, waits).outcome == "waiting_for_labels"
    provider.annotate(1, images_of(workspace, 1)[0][0])
    assert run_fake_round(workspace, provider, waits).outcome == "completed"
    assert read_labels(workspace.labels).checks == {SEED: True}


def test_a_run_killed_at_any_effect_supersedes_once(campaign: tuple[Workspace, FakeProvider], tmp_path: Path) -> None:
    workspace, provider = campaign
    provider.annotate(1, SEED, width_px=7)
    provider.annotate(1, images_of(workspace, 1)[0][0])
    injector = FaultInjector()
    undisturbed = copy_campaign(tmp_path / "a", tmp_path / "no_fault")
    run_fake_round(*undisturbed, PARAMS, injector)
    expected = snapshot(*undisturbed)
    assert read_labels(undisturbed[0].labels).checks == {SEED: True}
    for number in range(1, len(injector.effect_names) + 1):
        killed = copy_campaign(tmp_path / "a", tmp_path / "killed")
        with pytest.raises(SimulatedCrash):
            run_fake_round(*killed, PARAMS, FaultInjector(number))
        for _ in range(2):
            run_fake_round(*killed, PARAMS)
        assert snapshot(*killed) == expected, f"killed {injector.effect_names[number - 1]} (effect {number})"
