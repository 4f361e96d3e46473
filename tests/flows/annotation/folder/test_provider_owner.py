"""A labeling folder belongs to one folder of a campaign; a copy publishes nothing there until it is adopted."""

import json
from pathlib import Path

import pytest

from flows.annotation.providers.base import OwnedProvider, ProviderError
from flows.workspace.owner import settle
from tasks.data.paths import Workspace
from tests.flows.annotation.folder.conftest import Team


def test_another_folder_of_the_campaign_is_refused_until_it_takes_over(team: Team) -> None:
    first = settle(Workspace(team.root), None)
    team.provider.check()
    team.provider.deliver(team.delivery)
    content = json.loads(team.read_outbox("owner.json") or b"")
    assert content["owner_id"] == first.owner_id
    second = settle(Workspace(team.root), None)  # as a copy that was adopted
    for call in (team.provider.check, lambda: team.provider.deliver(team.delivery)):
        with pytest.raises(ProviderError, match=r"it belongs to .*gleaner adopt") as raised:
            call()
        assert not raised.value.transient
    assert isinstance(team.provider, OwnedProvider)
    assert team.provider.take_over() == str(first.place)
    assert team.provider.take_over() is None
    assert json.loads(team.read_outbox("owner.json") or b"")["owner_id"] == second.owner_id
    team.provider.check()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_a_damaged_record_names_nobody(team: Team, text: str) -> None:
    settle(Workspace(team.root), None)
    (Path(team.location) / "outbox").mkdir()
    (Path(team.location) / "outbox" / "owner.json").write_text(text)
    team.provider.check()


def test_a_campaign_without_a_record_claims_nothing(team: Team) -> None:
    team.provider.check()
    assert team.read_outbox("owner.json") is None
