"""A real night, with all its stages, on a part of a batch, and its provider away at the end of it."""

from pathlib import Path

import pytest

from flows import data_versions, vcs
from flows.labels.deliveries import offered_deliveries, read_delivery
from flows.labels.providers.base import ProviderError
from flows.night import night
from flows.position import finished_round
from tasks import files
from tasks.label_store import read_labels
from tasks.paths import Workspace
from tests.flows.lifecycle.label_tool import LabelTool

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_engine")]


def test_leased_images_are_not_picked_again_and_a_lost_delivery_is_repeated(
    after_two_rounds: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    def refuse(call: str) -> None:
        if full and call == "deliver":
            raise ProviderError("tool", "the disk is full, expected room")

    tool = LabelTool(tmp_path / "tool.json")
    finished, offered = offered_deliveries(after_two_rounds)
    tool.deliver(finished)
    tool.withdraw(finished, finished.image_ids)
    tool.deliver(offered)
    first, *others = offered.image_ids
    tool.answer(2, first)
    monkeypatch.setattr("flows.night.choose_provider", lambda *_: LabelTool(tool.path, before=refuse))
    with pytest.raises(ProviderError, match="disk is full") as refused:
        night(after_two_rounds.root)
    assert refused.value.exit_code == 1
    assert finished_round(after_two_rounds) == 2
    assert list(read_labels(after_two_rounds.labels).leased) == sorted(others)
    assert files.read_json(after_two_rounds.derived("assemble") / "leased.json") == sorted(others)
    prepared = read_delivery(after_two_rounds, 3)
    assert prepared is not None
    assert prepared.state == "prepared"
    assert prepared.image_ids
    assert not set(prepared.image_ids) & {first, *others}
    assert data_versions.is_clean(after_two_rounds.root)
    full = False
    recovered = night(after_two_rounds.root)
    assert (recovered.outcome, recovered.round_number) == ("finished", 2)
    assert tool.open_images() == {*others, *prepared.image_ids}
    assert vcs.git(after_two_rounds.root, "status", "--porcelain") == ""
    assert data_versions.is_clean(after_two_rounds.root)
