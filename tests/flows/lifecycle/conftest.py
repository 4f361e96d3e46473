"""A campaign of plain nights, and the tool its annotators work in."""

from pathlib import Path

import pytest

from tasks.paths import Workspace
from tests.flows.lifecycle.label_tool import LabelTool
from tests.flows.lifecycle.plain_nights import PARAMS, make_plain_campaign, plain_night


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A campaign whose first batch is with the annotators."""
    made = make_plain_campaign(tmp_path / "campaign")
    assert plain_night(made, LabelTool(tmp_path / "tool.json"), PARAMS).outcome == "finished"
    return made


@pytest.fixture
def tool(workspace: Workspace, tmp_path: Path) -> LabelTool:
    """The tool they work in."""
    return LabelTool(tmp_path / "tool.json")
