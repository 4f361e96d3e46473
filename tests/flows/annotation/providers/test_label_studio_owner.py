"""A Label Studio project belongs to one folder of a campaign; its description says to which."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from flows.annotation.providers.base import OwnedProvider, ProviderError
from flows.annotation.providers.label_studio import LabelStudioProvider
from flows.annotation.providers.label_studio_client import Project
from flows.workspace import git
from flows.workspace.owner import settle
from tasks.data.paths import Workspace
from tasks.params import load_params
from tests.flows.small_campaign import REPOSITORY


class Client:
    """The two calls that ownership takes, with one project."""

    def __init__(self, description: str) -> None:
        self.project = Project(1, "http://h/projects/1", "cells", description, "")

    def list_projects(self) -> list[Project]:
        return [self.project]

    def set_description(self, project: Project, description: str) -> None:
        self.project = Project(project.number, project.url, project.title, description, "")


def test_another_folders_project_is_refused_until_it_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    git.init_repository(tmp_path)
    workspace.params.write_text("a: 1\n")
    git.commit(workspace, "first")
    provider = LabelStudioProvider(workspace, ("cat",), load_params(REPOSITORY / "params.yaml").provider)
    assert isinstance(provider, OwnedProvider)
    first = settle(workspace, None)
    client: Any = Client(provider._description())
    monkeypatch.setattr(provider, "_client", lambda: nullcontext(client))
    assert provider._find_project(client) == client.project
    second = settle(workspace, None)  # as a copy that was adopted
    with pytest.raises(ProviderError, match=r"it belongs to .*gleaner adopt"):
        provider._find_project(client)
    assert provider.take_over() == str(first.place)
    assert second.owner_id in client.project.description
    assert git.campaign_id(tmp_path) in client.project.description
    assert provider._find_project(client) == client.project
    assert provider.take_over() is None
    client.set_description(client.project, f"edited by a person: {git.campaign_id(tmp_path)}")
    assert provider._find_project(client) == client.project  # nobody is named
