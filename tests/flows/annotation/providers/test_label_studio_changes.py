"""Failures around a real Label Studio: deleted tasks and projects, changed classes, tokens, images it cannot serve."""

from dataclasses import replace

import pytest

from flows.annotation.providers.base import LabelingProgress, ProviderError
from tasks.runtime.errors import UserError
from tests.flows.annotation.providers.conftest import LabelStudioServer
from tests.flows.annotation.providers.label_studio_users import Team, new_team, project_id, task_ids

pytestmark = [pytest.mark.integration, pytest.mark.services]
FREE_PORT = "http://127.0.0.1:9"


def test_a_deleted_task_is_offered_again_and_logged(
    team: Team, label_studio: LabelStudioServer, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = team.deliver(team.make_batch(1, range(2)))
    kept, deleted = task_ids(label_studio.owner, delivery).values()
    label_studio.owner.annotate(kept)
    label_studio.owner.sdk.tasks.delete(id=str(deleted))
    assert len(team.provider.collect(delivery)) == 1
    assert "1 task deleted" in caplog.text
    assert team.provider.status(delivery) == LabelingProgress(finished=1, open=1)


def test_a_deleted_project_is_reported_and_created_again(team: Team, label_studio: LabelStudioServer) -> None:
    delivery = team.deliver(team.make_batch(1, range(2)))
    label_studio.owner.sdk.projects.delete(id=project_id(delivery))
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=0)
    team.provider.withdraw(delivery, delivery.image_ids)
    with pytest.raises(ProviderError, match="project was deleted with 2 images of batch 1") as raised:
        team.provider.collect(delivery)
    assert not raised.value.transient
    assert team.provider.collect(delivery) == []
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=2)


def test_a_class_that_was_removed_stops_collecting_until_it_is_back(
    team: Team, label_studio: LabelStudioServer
) -> None:
    delivery = team.deliver(team.make_batch(1, range(2)))
    label_studio.owner.annotate(next(iter(task_ids(label_studio.owner, delivery).values())))
    project = label_studio.owner.sdk.projects.get(id=project_id(delivery))
    config = str(project.label_config)
    without = "".join(line for line in config.splitlines(keepends=True) if "knife" not in line)
    label_studio.owner.sdk.projects.update(id=project_id(delivery), label_config=without)
    for call in (team.provider.collect, team.provider.deliver):
        with pytest.raises(ProviderError, match="lacks 'fork & <knife>'") as raised:
            call(delivery)
        assert f"/projects/{project_id(delivery)}/settings/labeling" in str(raised.value)
    label_studio.owner.sdk.projects.update(id=project_id(delivery), label_config=config)
    assert len(team.provider.collect(delivery)) == 1


def test_a_renamed_project_is_found_by_its_description_or_its_title(
    team: Team, label_studio: LabelStudioServer
) -> None:
    delivery = team.deliver(team.make_batch(1, [0]))
    label_studio.owner.sdk.projects.update(id=project_id(delivery), title="Our tables")
    assert team.provider.deliver(delivery) == delivery.receipt
    label_studio.owner.sdk.projects.update(
        id=project_id(delivery), title=f"Tables ({team.provider._campaign_id()[:8]})", description="changed"
    )
    assert team.provider.deliver(delivery) == delivery.receipt


def test_a_wrong_token_a_missing_one_and_a_server_that_is_down(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = team.make_batch(1, [0])
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    for call in (team.provider.check, lambda: team.provider.deliver(delivery), lambda: team.provider.collect(delivery)):
        with pytest.raises(ProviderError, match="the token was refused") as refused:
            call()
        assert not refused.value.transient
        assert "0" * 40 not in str(refused.value)
    with pytest.raises(ProviderError, match="the connection failed") as down:
        replace(team, url=FREE_PORT).provider.check()
    assert down.value.transient
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    with pytest.raises(UserError, match="LABEL_STUDIO_API_KEY: the environment variable is not set"):
        team.provider.check()


def test_images_that_label_studio_cannot_see_are_refused_before_the_import(
    label_studio: LabelStudioServer, team: Team
) -> None:
    elsewhere = new_team(label_studio.files.with_name("elsewhere") / "table", team.url, images=1)
    delivery = elsewhere.make_batch(1, [0])
    with pytest.raises(ProviderError, match="LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="):
        elsewhere.provider.deliver(delivery)
    assert elsewhere.provider.status(delivery) == LabelingProgress(finished=0, open=0)


def test_a_missing_image_is_an_error_with_its_name(team: Team) -> None:
    delivery = team.make_batch(1, [0])
    team.workspace.images.joinpath("0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png: the image cannot be read .* dvc checkout"):
        team.provider.deliver(delivery)
