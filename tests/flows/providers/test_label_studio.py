"""The provider against a real Label Studio: what it keeps, whatever happens in between."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import httpx
import pytest

from flows.labels.providers.base import Delivery, LabelingProgress, ProviderError, Returned
from flows.labels.providers.label_studio.offers import PREDRAWN_BY
from tasks.errors import UserError
from tests.flows.providers.conftest import LabelStudioServer
from tests.flows.providers.team import BOXES, CLASSES, Team, drawn, new_team
from tests.services import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.service]
FREE_PORT = "http://127.0.0.1:9"


class Cut(httpx.BaseTransport):
    """The network; at one call it breaks, before the server hears of it or before we hear the answer."""

    def __init__(self, at: int | None = None, *, heard: bool = False) -> None:
        self.at, self.heard = at, heard
        self.methods: list[str] = []
        self._network = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.methods.append(request.method)
        if len(self.methods) - 1 != self.at:
            return self._network.handle_request(request)
        if self.heard:
            self._network.handle_request(request).read()
        raise httpx.ReadError("the connection was cut")

    def close(self) -> None:
        self._network.close()


def project_of(delivery: Delivery) -> int:
    assert delivery.receipt is not None
    return int(delivery.receipt.rpartition("/")[2])


def task_numbers(server: LabelStudioServer, delivery: Delivery) -> dict[str, int]:
    """Task by image id; there must be one for each image."""
    found = [t for t in server.owner.sdk.tasks.list(project=project_of(delivery)) if t.data["delivery"] == delivery.key]
    numbers = {task.data["image_id"]: task.id for task in found}
    assert len(numbers) == len(found)
    return {image_id: numbers[image_id] for image_id in delivery.image_ids if image_id in numbers}


def said(answers: Sequence[Returned]) -> set[tuple[str, str, str]]:
    given = [(answer["image_id"], answer["annotator"], answer["status"]) for answer in answers]
    assert len(set(given)) == len(given)
    return set(given)


def until_it_works(team: Team, call: Callable[[Team], object]) -> int:
    """Cut the connection at every call; each time a repeated attempt must succeed. Returns the number of calls.

    What only asks is cut once; what changes something, both before the server has heard of it and after.
    """
    whole = Cut()
    call(replace(team, transport=whole))
    for at, method in enumerate(whole.methods):
        for heard in (False, True) if method != "GET" else (False,):
            with pytest.raises(ProviderError, match="the connection was cut") as raised:
                call(replace(team, transport=Cut(at, heard=heard)))
            assert raised.value.transient
            call(team)
    return len(whole.methods)


def test_a_delivery_comes_with_boxes_reason_and_identity(team: Team, label_studio: LabelStudioServer) -> None:
    team.provider.check()
    delivery = team.offered(team.delivery(1, range(3)))
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=3)
    task = label_studio.owner.next_task(project_of(delivery))
    assert task is not None
    assert task["data"]["about"] == "Batch 1, pick 1: uncertainty 0.93, mostly by entropy"
    assert task["data"]["image_id"] == delivery.image_ids[0]
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == PREDRAWN_BY
    assert [region["score"] for region in prediction["result"]] == [0.9, 0.4]
    assert label_studio.owner.fetch(task["data"]["image"]) == (team.workspace.images / "0.png").read_bytes()


def test_the_next_delivery_leaves_the_boxes_of_the_last_one_alone(team: Team, label_studio: LabelStudioServer) -> None:
    """The label stream shows predictions of one model version per project only."""
    first = team.offered(team.delivery(1, [0], teacher="a" * 64))
    second = team.offered(team.delivery(2, [1], teacher="b" * 64))
    assert project_of(first) == project_of(second)
    for delivery in (first, second):
        task = label_studio.owner.next_task(project_of(delivery))
        assert task is not None
        assert task["data"]["delivery"] == delivery.key
        assert len(task["predictions"][0]["result"]) == len(BOXES)
        label_studio.owner.annotate(task["id"])


def test_two_annotators_a_skip_and_a_change_of_mind(team: Team, label_studio: LabelStudioServer) -> None:
    delivery = team.offered(team.delivery(1, range(4)))
    tasks = list(task_numbers(label_studio, delivery).values())
    owner, second = label_studio.owner, label_studio.second
    owner.annotate(tasks[0], drawn(CLASSES[0], *BOXES[0]), lead_time=4.5)
    second.annotate(tasks[0], drawn(CLASSES[1], *BOXES[1]))
    second.annotate(tasks[1], was_cancelled=True)
    changed = owner.annotate(tasks[2])
    owner.ask("PATCH", f"/api/annotations/{changed}/", json={"result": [drawn(CLASSES[0], *BOXES[0])]})
    answers = team.provider.collect(delivery)
    one, two, three, _ = delivery.image_ids
    assert said(answers) == {
        (one, owner.email, "labeled"),
        (one, second.email, "labeled"),
        (two, second.email, "skipped"),
        (three, owner.email, "labeled"),
    }
    first = next(answer for answer in answers if answer["image_id"] == one and answer["annotator"] == owner.email)
    assert first["boxes"][0]["xyxy_px"] == pytest.approx(BOXES[0], abs=1e-3)
    assert first["seconds_spent"] == 4.5
    assert first["link"].endswith(f"/data?task={tasks[0]}")
    assert team.provider.status(delivery) == LabelingProgress(finished=3, open=1)


def test_a_share_is_shown_to_two_annotators_and_no_more(team: Team, label_studio: LabelStudioServer) -> None:
    team.consensus_frac = 0.5
    delivery = team.offered(team.delivery(1, range(4)))
    shown: list[int] = []
    while task := label_studio.owner.next_task(project_of(delivery)):
        label_studio.owner.annotate(task["id"])
        shown.append(task["id"])
    again: list[int] = []
    while task := label_studio.second.next_task(project_of(delivery)):
        label_studio.second.annotate(task["id"])
        again.append(task["id"])
    assert (len(shown), len(again)) == (4, 2)
    assert len(said(team.provider.collect(delivery))) == 6


def test_what_is_taken_back_leaves_the_stream_but_a_late_answer_counts(
    team: Team, label_studio: LabelStudioServer
) -> None:
    delivery = team.offered(team.delivery(1, range(4)))
    finished, begun, late, idle = task_numbers(label_studio, delivery).values()
    label_studio.owner.annotate(finished)
    label_studio.second.ask("POST", f"/api/tasks/{begun}/drafts", json={"result": [drawn(CLASSES[0], *BOXES[0])]})
    for _ in range(2):
        team.provider.withdraw(delivery, delivery.image_ids)
    assert team.provider.status(delivery) == LabelingProgress(finished=1, open=1)
    shown = label_studio.owner.next_task(project_of(delivery))
    assert shown is not None
    assert shown["id"] == begun
    label_studio.second.annotate(late)
    label_studio.second.annotate(begun, drawn(CLASSES[0], *BOXES[0]))
    assert {answer["image_id"] for answer in team.provider.collect(delivery)} == set(delivery.image_ids[:3])
    assert label_studio.owner.next_task(project_of(delivery)) is None
    assert idle in task_numbers(label_studio, delivery).values()


def test_cut_anywhere_a_repeated_delivery_is_whole_and_single(label_studio: LabelStudioServer, team: Team) -> None:
    """Each time with a new campaign, so that the project's making is cut too."""
    campaigns = iter(range(1000))
    delivered: list[tuple[Delivery, Team]] = []
    made: dict[httpx.BaseTransport | None, Team] = {}

    def deliver(of: Team) -> None:
        if of.transport is not None:
            fresh = new_team(team.workspace.root.with_name(f"cut-{next(campaigns)}"), of.url, images=2)
            made[None] = replace(fresh, consensus_frac=0.5)
        current = replace(made[None], transport=of.transport)
        delivered.append((current.offered(current.delivery(1, range(2))), current))

    calls = until_it_works(team, deliver)
    assert calls >= 9
    for delivery, _ in delivered:
        assert len(task_numbers(label_studio, delivery)) == 2
        wanted = [task.overlap for task in label_studio.owner.sdk.tasks.list(project=project_of(delivery))]
        assert sorted(wanted) == [1, 2]
    titles = [project.title for project in label_studio.owner.sdk.projects.list(page_size=500)]
    assert len([title for title in titles if title.startswith("cut-")]) == len(delivered)


def test_cut_anywhere_a_repeated_collection_says_the_same(team: Team, label_studio: LabelStudioServer) -> None:
    delivery = team.offered(team.delivery(1, range(2)))
    for number in task_numbers(label_studio, delivery).values():
        label_studio.owner.annotate(number, drawn(CLASSES[0], *BOXES[0]))
    whole = team.provider.collect(delivery)
    assert len(said(whole)) == 2

    def collect(of: Team) -> None:
        assert of.provider.collect(delivery) == whole

    assert until_it_works(team, collect) >= 4


def test_doubles_of_an_import_that_ended_late_go_at_the_next_delivery(
    team: Team, label_studio: LabelStudioServer
) -> None:
    delivery = team.offered(team.delivery(1, range(2)))
    first, second = task_numbers(label_studio, delivery).values()
    twice = [{"data": label_studio.owner.sdk.tasks.get(id=str(number)).data} for number in (first, second)]
    label_studio.owner.sdk.projects.import_tasks(id=project_of(delivery), request=twice)
    worked_on = next(t.id for t in label_studio.owner.sdk.tasks.list(project=project_of(delivery)) if t.id > second)
    label_studio.owner.annotate(worked_on, drawn(CLASSES[0], *BOXES[0]))
    team.provider.deliver(delivery)
    assert list(task_numbers(label_studio, delivery).values()) == [worked_on, second]
    assert len(team.provider.collect(delivery)) == 1


def test_a_deleted_task_is_offered_again_and_said(
    team: Team, label_studio: LabelStudioServer, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = team.offered(team.delivery(1, range(2)))
    kept, deleted = task_numbers(label_studio, delivery).values()
    label_studio.owner.annotate(kept)
    label_studio.owner.sdk.tasks.delete(id=str(deleted))
    assert len(team.provider.collect(delivery)) == 1
    assert "1 tasks were deleted" in caplog.text
    assert team.provider.status(delivery) == LabelingProgress(finished=1, open=1)


def test_a_deleted_project_is_said_and_begun_anew(team: Team, label_studio: LabelStudioServer) -> None:
    delivery = team.offered(team.delivery(1, range(2)))
    label_studio.owner.sdk.projects.delete(id=project_of(delivery))
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=0)
    team.provider.withdraw(delivery, delivery.image_ids)
    with pytest.raises(ProviderError, match="project was deleted, expected it with 2 images of batch 1") as raised:
        team.provider.collect(delivery)
    assert not raised.value.transient
    assert team.provider.collect(delivery) == []
    assert team.provider.status(delivery) == LabelingProgress(finished=0, open=2)


def test_a_class_that_was_removed_stops_collecting_until_it_is_back(
    team: Team, label_studio: LabelStudioServer
) -> None:
    delivery = team.offered(team.delivery(1, range(2)))
    label_studio.owner.annotate(next(iter(task_numbers(label_studio, delivery).values())))
    project = label_studio.owner.sdk.projects.get(id=project_of(delivery))
    config = str(project.label_config)
    without = "".join(line for line in config.splitlines(keepends=True) if "knife" not in line)
    label_studio.owner.sdk.projects.update(id=project_of(delivery), label_config=without)
    for call in (team.provider.collect, team.provider.deliver):
        with pytest.raises(ProviderError, match="lacks 'fork & <knife>'") as raised:
            call(delivery)
        assert f"/projects/{project_of(delivery)}/settings/labeling" in str(raised.value)
    label_studio.owner.sdk.projects.update(id=project_of(delivery), label_config=config)
    assert len(team.provider.collect(delivery)) == 1


def test_a_renamed_project_is_found_by_its_description_or_its_title(
    team: Team, label_studio: LabelStudioServer
) -> None:
    delivery = team.offered(team.delivery(1, [0]))
    label_studio.owner.sdk.projects.update(id=project_of(delivery), title="Our tables")
    assert team.provider.deliver(delivery) == delivery.receipt
    label_studio.owner.sdk.projects.update(
        id=project_of(delivery), title=f"Tables ({team.provider._campaign()[:8]})", description="Please be quick"
    )
    assert team.provider.deliver(delivery) == delivery.receipt


def test_a_wrong_token_a_missing_one_and_a_server_that_is_down(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = team.delivery(1, [0])
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    for call in (team.provider.check, lambda: team.provider.deliver(delivery), lambda: team.provider.collect(delivery)):
        with pytest.raises(ProviderError, match="the token is refused") as refused:
            call()
        assert not refused.value.transient
        assert "0" * 40 not in str(refused.value)
    with pytest.raises(ProviderError, match="the connection fails") as down:
        replace(team, url=FREE_PORT).provider.check()
    assert down.value.transient
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    with pytest.raises(UserError, match="LABEL_STUDIO_API_KEY: the environment variable is not set"):
        team.provider.check()


def test_images_that_label_studio_cannot_see_are_refused_before_the_import(
    label_studio: LabelStudioServer, team: Team
) -> None:
    elsewhere = new_team(label_studio.files.with_name("elsewhere") / "table", team.url, images=1)
    delivery = elsewhere.delivery(1, [0])
    with pytest.raises(ProviderError, match="LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="):
        elsewhere.provider.deliver(delivery)
    assert elsewhere.provider.status(delivery) == LabelingProgress(finished=0, open=0)


def test_an_image_that_is_gone_is_named(team: Team) -> None:
    delivery = team.delivery(1, [0])
    team.workspace.images.joinpath("0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png: the image cannot be read .* dvc checkout"):
        team.provider.deliver(delivery)


def test_images_in_a_bucket_are_shown_through_label_studio_with_its_own_credentials(
    team: Team, label_studio: LabelStudioServer, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.use(monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "this one stays here")
    bucket, picture = s3_server.new_bucket(), team.workspace.images / "0.png"
    s3_server.client().upload_file(str(picture), bucket, "data/images/0.png")
    delivery = team.offered(team.delivery(1, [0], bucket=bucket))
    assert team.provider.deliver(delivery) == delivery.receipt
    storages = label_studio.owner.sdk.import_storage.s3.list(project=project_of(delivery))
    assert [(storage.bucket, storage.presign) for storage in storages] == [(bucket, False)]
    task = label_studio.owner.next_task(project_of(delivery))
    assert task is not None
    assert "Signature" not in task["data"]["image"]
    assert label_studio.owner.fetch(task["data"]["image"]) == picture.read_bytes()
    label_studio.owner.annotate(task["id"])
    (answer,) = team.provider.collect(delivery)
    assert answer["image_sha256"] is None
