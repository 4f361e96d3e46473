"""A label provider that does not answer, or lost a batch: the run does everything else, then reports it."""

from pathlib import Path

import pytest

from flows.annotation.batches import read_annotation_batch
from flows.annotation.providers.base import ProviderError
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.lifecycle.fake_pipeline import (
    BATCH_SIZE,
    PARAMS,
    batch_images,
    count_states,
    make_fake_campaign,
    read_label_batch,
    run_fake_round,
    run_until_idle,
)
from tests.flows.lifecycle.fake_provider import FakeProvider


def test_a_delivery_that_the_provider_lost_does_not_affect_the_others(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    fake_provider.annotate(1, batch_images(workspace, 1)[0])
    run_fake_round(workspace, fake_provider, PARAMS)
    content = fake_provider.state
    del content["batches"]["1"]
    files.write_json(fake_provider.path, content)
    late = batch_images(workspace, 2)[0]
    fake_provider.annotate(2, late)
    with pytest.raises(ProviderError, match="batch 1 is unknown"):
        run_fake_round(workspace, fake_provider, PARAMS)
    assert [label.image_id for label in read_label_batch(workspace, 2).images] == [late]
    assert len(batch_images(workspace, 3)) == BATCH_SIZE


def test_a_delivery_without_its_manifest_does_not_affect_the_others(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    fake_provider.annotate(1, batch_images(workspace, 1)[0])
    run_fake_round(workspace, fake_provider, PARAMS)
    (workspace.delivery(1) / "manifest.jsonl").unlink()
    fake_provider.annotate(1, batch_images(workspace, 1)[1])
    labeled = batch_images(workspace, 2)[0]
    fake_provider.annotate(2, labeled)
    with pytest.raises(ProviderError, match=r"batch-0001/manifest\.jsonl: the manifest of stage handoff is missing"):
        run_fake_round(workspace, fake_provider, PARAMS)
    assert [label.image_id for label in read_label_batch(workspace, 2).images] == [labeled]


def test_a_provider_that_does_not_answer_stops_only_what_needs_it(tmp_path: Path) -> None:
    workspace, is_down = make_fake_campaign(tmp_path / "campaign"), True

    def refuse(call: str) -> None:
        if is_down:
            raise ProviderError("tool", f"{call}: no response", transient=True)

    fake_provider = FakeProvider(tmp_path / "tool.json", before=refuse)
    with pytest.raises(ProviderError, match="check: no response"):
        run_fake_round(workspace, fake_provider, PARAMS)
    prepared = read_annotation_batch(workspace, 1)
    assert workspace.ledger(0).is_file()
    assert prepared is not None
    assert prepared.state == "prepared"
    assert count_states(workspace) == {"offered": BATCH_SIZE}
    with pytest.raises(ProviderError):
        run_fake_round(workspace, fake_provider, PARAMS)
    is_down = False
    recovered = run_fake_round(workspace, fake_provider, PARAMS)
    assert (recovered.outcome, recovered.round_number) == ("completed", 0)
    assert count_states(workspace) == {"leased": BATCH_SIZE}


def test_labels_are_collected_while_a_batch_cannot_be_offered(
    workspace: Workspace, fake_provider: FakeProvider
) -> None:
    full = True

    def refuse(call: str) -> None:
        if full and call == "deliver":
            raise ProviderError("tool", "the disk is full")

    first, second, third = batch_images(workspace, 1)
    refusing = FakeProvider(fake_provider.path, before=refuse)
    fake_provider.annotate(1, first)
    with pytest.raises(ProviderError, match="disk is full"):
        run_fake_round(workspace, refusing, PARAMS)
    fake_provider.annotate(1, second)
    with pytest.raises(ProviderError, match="disk is full"):
        run_fake_round(workspace, refusing, PARAMS)
    assert count_states(workspace) == {"labeled": 2, "leased": 1, "offered": 2 * BATCH_SIZE}
    full = False
    fake_provider.annotate(1, third)
    assert run_fake_round(workspace, refusing, PARAMS).round_number == 3
    assert count_states(workspace) == {"labeled": 3, "leased": 3 * BATCH_SIZE}
    assert run_until_idle(workspace, fake_provider, PARAMS)[-1].outcome == "waiting_for_labels"
