"""A campaign with a fake pipeline, and its label provider."""

from pathlib import Path

import pytest

from tasks.data.paths import Workspace
from tests.flows.lifecycle.fake_pipeline import PARAMS, make_fake_campaign, run_fake_round
from tests.flows.lifecycle.fake_provider import FakeProvider


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A campaign whose first batch is with the annotators."""
    made = make_fake_campaign(tmp_path / "campaign")
    assert run_fake_round(made, FakeProvider(tmp_path / "tool.json"), PARAMS).outcome == "completed"
    return made


@pytest.fixture
def fake_provider(workspace: Workspace, tmp_path: Path) -> FakeProvider:
    """The label provider of the campaign."""
    return FakeProvider(tmp_path / "tool.json")
