"""A label provider that is away, or has lost something: said at the end of a night that did all it could without it."""

from pathlib import Path

import pytest

from flows.labels.deliveries import read_delivery
from flows.labels.providers.base import ProviderError
from tasks import files
from tasks.paths import Workspace
from tests.flows.lifecycle.label_tool import LabelTool
from tests.flows.lifecycle.plain_nights import (
    BATCH,
    PARAMS,
    batch_file,
    images,
    make_plain_campaign,
    nights_until_quiet,
    plain_night,
    states,
)


def test_a_delivery_the_provider_lost_does_not_hold_up_the_others(workspace: Workspace, tool: LabelTool) -> None:
    tool.answer(1, images(workspace, 1)[0])
    plain_night(workspace, tool, PARAMS)
    content = tool.content
    del content["batches"]["1"]
    files.write_json(tool.path, content)
    late = images(workspace, 2)[0]
    tool.answer(2, late)
    with pytest.raises(ProviderError, match="batch 1 is unknown"):
        plain_night(workspace, tool, PARAMS)
    assert [label.image_id for label in batch_file(workspace, 2).images] == [late]
    assert len(images(workspace, 3)) == BATCH


def test_a_provider_that_is_away_stops_only_what_needs_it(tmp_path: Path) -> None:
    workspace, away = make_plain_campaign(tmp_path / "campaign"), True

    def refuse(call: str) -> None:
        if away:
            raise ProviderError("tool", f"{call}: it is away, expected it to answer", transient=True)

    tool = LabelTool(tmp_path / "tool.json", before=refuse)
    with pytest.raises(ProviderError, match="check: it is away"):
        plain_night(workspace, tool, PARAMS)
    prepared = read_delivery(workspace, 1)
    assert workspace.ledger(0).is_file()
    assert prepared is not None
    assert prepared.state == "prepared"
    assert states(workspace) == {"offered": BATCH}
    with pytest.raises(ProviderError):
        plain_night(workspace, tool, PARAMS)
    away = False
    recovered = plain_night(workspace, tool, PARAMS)
    assert (recovered.outcome, recovered.round_number) == ("finished", 0)
    assert states(workspace) == {"leased": BATCH}


def test_labels_are_collected_while_a_batch_cannot_be_offered(workspace: Workspace, tool: LabelTool) -> None:
    full = True

    def refuse(call: str) -> None:
        if full and call == "deliver":
            raise ProviderError("tool", "the disk is full, expected room")

    first, second, third = images(workspace, 1)
    refusing = LabelTool(tool.path, before=refuse)
    tool.answer(1, first)
    with pytest.raises(ProviderError, match="disk is full"):
        plain_night(workspace, refusing, PARAMS)
    tool.answer(1, second)
    with pytest.raises(ProviderError, match="disk is full"):
        plain_night(workspace, refusing, PARAMS)
    assert states(workspace) == {"labeled": 2, "leased": 1, "offered": 2 * BATCH}
    full = False
    tool.answer(1, third)
    assert plain_night(workspace, refusing, PARAMS).round_number == 3
    assert states(workspace) == {"labeled": 3, "leased": 3 * BATCH}
    assert nights_until_quiet(workspace, tool, PARAMS)[-1].outcome == "waiting"
