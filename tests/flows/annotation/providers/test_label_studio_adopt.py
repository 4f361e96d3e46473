"""A campaign renamed, copied, cloned and restored, with a real Label Studio and a shared MLflow on PostgreSQL."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.annotation.providers import create_provider
from flows.annotation.providers.base import AnnotationBatch, ProviderError, RawAnnotation
from flows.registry.adopt import adopt
from flows.run_hooks import require_owned_tracking
from flows.workspace import git
from flows.workspace.owner import OwnerError, require_own_folder
from tasks.data.paths import Workspace
from tasks.data.schemas import LabelBatch
from tasks.params import Params, load_params
from tasks.params.template import render_params
from tasks.storage import files
from tests.flows.annotation.providers.conftest import LabelStudioServer
from tests.flows.annotation.providers.label_studio_users import (
    BOXES,
    CLASSES,
    annotation_keys,
    make_region,
    new_team,
    project_id,
    task_ids,
)
from tests.flows.small_campaign import REPOSITORY
from tests.flows.tracking_campaign import publish_fake_round

pytestmark = [pytest.mark.integration, pytest.mark.services]
IMAGES = range(4)


class Campaign:
    """A campaign with round 0 in MLflow and batch 1 at the annotators, of whom one has answered."""

    def __init__(self, server: LabelStudioServer, name: str) -> None:
        self.server = server
        self.team = new_team(server.files / name, server.url)
        workspace = self.team.workspace
        template = (REPOSITORY / "params.yaml").read_text()
        changes = ("provider.kind=label_studio", f"provider.url={server.url}")
        files.write_bytes(workspace.params, render_params(template, classes=CLASSES, overrides=changes).encode())
        files.write_bytes(workspace.root / ".gitignore", b"/.gleaner/\n/data/images/\n/deliveries/\n")
        git.commit(workspace, "Parameters", (".gitignore", "params.yaml", "data"))
        publish_round(workspace, 0)
        self.delivery = self.team.deliver(self.team.make_batch(1, IMAGES))
        self.answer(0)

    def answer(self, number: int) -> None:
        """Draw a box on an image of batch 1."""
        task = list(task_ids(self.server.owner, self.delivery).values())[number]
        self.server.second.annotate(task, make_region(CLASSES[0], *BOXES[0]), lead_time=3.0)

    def shown(self, number: int) -> bytes:
        """Download what the browser of an annotator shows of an image of batch 1."""
        task = list(task_ids(self.server.owner, self.delivery).values())[number]
        return self.server.second.fetch(self.server.owner.sdk.tasks.get(id=str(task)).data["image"])

    def on_server(self) -> Any:
        """Everything that a stranger must not change: tasks, project, experiment."""
        sdk, project = self.server.owner.sdk, project_id(self.delivery)
        tasks = [(task.id, task.overlap, task.data) for task in sdk.tasks.list(project=project)]
        found = sdk.projects.get(id=project)
        return sorted(tasks, key=lambda task: task[0]), found.title, found.description


def publish_round(workspace: Workspace, number: int) -> None:
    """Publish in MLflow, with a label batch that the provider can read."""
    publish_fake_round(workspace, number)
    batch = LabelBatch(batch=number, provider="test", collected_at="2026-03-01T00:00:00+00:00", images=())
    files.write_json(workspace.label_batch(number), batch.model_dump(mode="json"))
    git.commit(workspace, f"Labels of round {number}", ("data",))


def provider_in(workspace: Workspace, server: LabelStudioServer) -> Any:
    """The provider of a folder, as a run there makes it."""
    assert load_params(workspace.params).provider.url == server.url
    return create_provider(workspace, load_params(workspace.params))


def params_of(workspace: Workspace) -> Params:
    return load_params(workspace.params)


def collect(workspace: Workspace, campaign: Campaign) -> list[RawAnnotation]:
    """Collect batch 1 from a folder."""
    delivery = delivery_in(workspace, campaign)
    found: list[RawAnnotation] = list(provider_in(workspace, campaign.server).collect(delivery))
    annotation_keys(found)  # each once
    return found


def delivery_in(workspace: Workspace, campaign: Campaign) -> AnnotationBatch:
    """Batch 1 as it lies in another folder."""
    known = campaign.delivery
    return AnnotationBatch(
        1, known.key, workspace.delivery(1), known.image_ids, known.delivered_at, "delivered", known.receipt
    )


@pytest.fixture
def campaign(
    label_studio: LabelStudioServer, mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Campaign:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.owner.token)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    return Campaign(label_studio, tmp_path.name)


def test_a_renamed_folder_goes_on_and_annotators_see_its_images(campaign: Campaign) -> None:
    shown = campaign.shown(1)
    root = campaign.team.workspace.root
    moved = Workspace(root.rename(root.with_name(f"{root.name}-renamed")))
    require_owned_tracking(moved)
    with pytest.raises(httpx.HTTPStatusError):
        campaign.shown(1)  # until the next run
    assert len(collect(moved, campaign)) == 1
    assert campaign.shown(1) == shown
    campaign.answer(1)
    assert len(collect(moved, campaign)) == 2
    publish_round(moved, 1)


@pytest.mark.parametrize("kind", ["copy", "clone"])
def test_a_copy_changes_nothing_until_it_is_adopted(campaign: Campaign, kind: str) -> None:
    original = campaign.team.workspace
    other = Workspace(original.root.with_name(f"{original.root.name}-other"))
    if kind == "copy":
        shutil.copytree(original.root, other.root)
    else:
        subprocess.run(["git", "clone", "--quiet", str(original.root), str(other.root)], check=True)
        for folder in ("data/images", "deliveries"):  # as `dvc pull` and the archive of the guide bring them
            shutil.copytree(original.root / folder, other.root / folder)
    before = campaign.on_server()
    for call in (lambda: require_own_folder(other), lambda: publish_fake_round(other, 1)):  # as a run begins and ends
        with pytest.raises(OwnerError, match="gleaner adopt"):
            call()
    assert campaign.on_server() == before
    assert len(collect(original, campaign)) == 1
    changes = adopt(other, params_of(other), "the machine was replaced").changes
    assert any(f"for that of {original.root}" in change for change in changes)
    before = campaign.on_server()
    former, delivery = provider_in(original, campaign.server), campaign.delivery
    for call in (
        former.check,
        lambda: former.collect(delivery),
        lambda: former.deliver(delivery),
        lambda: former.withdraw(delivery, delivery.image_ids),
        lambda: publish_fake_round(original, 1),
    ):
        with pytest.raises((OwnerError, ProviderError), match=f"it belongs to {other.root}"):
            call()
    assert campaign.on_server() == before
    shutil.rmtree(original.root)
    assert len(collect(other, campaign)) == 1
    campaign.shown(1)
    campaign.answer(1)
    assert len(collect(other, campaign)) == 2
    assert provider_in(other, campaign.server).deliver(delivery_in(other, campaign)) == campaign.delivery.receipt
    assert len(task_ids(campaign.server.owner, campaign.delivery)) == len(IMAGES)  # none twice


def test_an_older_backup_in_the_same_place_goes_on_with_the_open_work(campaign: Campaign, tmp_path: Path) -> None:
    workspace = campaign.team.workspace
    shutil.copytree(workspace.root, tmp_path / "backup")
    for number in (1, 2):
        publish_round(workspace, number)
    campaign.answer(1)
    shutil.rmtree(workspace.root)
    shutil.copytree(tmp_path / "backup", workspace.root)
    with pytest.raises(OwnerError, match="it has rounds 1, 2 of another copy of this folder, whose last is round 0"):
        require_owned_tracking(workspace)
    adopt(workspace, params_of(workspace), "restored from backup")
    require_owned_tracking(workspace)
    assert len(collect(workspace, campaign)) == 2
    campaign.shown(2)
