"""A real round with all stages on a part of a batch, whose provider fails at delivery."""

from pathlib import Path

import pytest

from flows.annotation.batches import offered_annotation_batches, read_annotation_batch
from flows.annotation.providers.base import ProviderError
from flows.nightly import nightly
from flows.workspace import dvc, git
from flows.workspace.rounds import last_published_round
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.lifecycle.fake_provider import FakeProvider

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_test_server")]


def test_leased_images_are_not_picked_again_and_a_lost_delivery_is_repeated(
    after_two_rounds: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    def refuse(call: str) -> None:
        if full and call == "deliver":
            raise ProviderError("tool", "the disk is full")

    fake_provider = FakeProvider(tmp_path / "tool.json")
    finished, offered = offered_annotation_batches(after_two_rounds)
    fake_provider.deliver(finished)
    fake_provider.withdraw(finished, finished.image_ids)
    fake_provider.deliver(offered)
    first, *others = offered.image_ids
    fake_provider.annotate(2, first)
    monkeypatch.setattr("flows.run_context.create_provider", lambda *_: FakeProvider(fake_provider.path, before=refuse))
    with pytest.raises(ProviderError, match="disk is full") as refused:
        nightly(after_two_rounds.root)
    assert refused.value.exit_code == 1
    assert last_published_round(after_two_rounds) == 2
    assert list(read_labels(after_two_rounds.labels).leased) == sorted(others)
    assert files.read_json(after_two_rounds.derived("assemble") / "leased.json") == sorted(others)
    prepared = read_annotation_batch(after_two_rounds, 3)
    assert prepared is not None
    assert prepared.state == "prepared"
    assert prepared.image_ids
    assert not set(prepared.image_ids) & {first, *others}
    assert dvc.is_clean(after_two_rounds.root)
    full = False
    recovered = nightly(after_two_rounds.root)
    assert (recovered.outcome, recovered.round_number) == ("completed", 2)
    assert fake_provider.open_images() == {*others, *prepared.image_ids}
    assert git.run_git(after_two_rounds.root, "status", "--porcelain") == ""
    assert dvc.is_clean(after_two_rounds.root)
