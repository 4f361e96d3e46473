"""Failures around CVAT: tokens, addresses, labels, images, servers that are down, slow, full or another program."""

import json
from collections.abc import Callable
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

from flows.annotation.providers import create_provider, cvat_client
from flows.annotation.providers.base import OwnedProvider, ProviderError
from flows.annotation.providers.cvat_client import CvatClient
from flows.workspace.owner import settle
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tests.flows.annotation.cvat.conftest import Team
from tests.flows.small_campaign import REPOSITORY

SECRET = "secret-token-of-nobody"


class Answering:
    """A network with one answer to everything."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer
        self.num_calls = 0

    def request(self, method: str, url: str, **options: Any) -> Any:
        self.num_calls += 1
        assert options["retries"] is False
        assert options["timeout"].connect_timeout == 10
        return self.answer()


def response(status: int, body: object = b"", **headers: str) -> Callable[[], Any]:
    """A response of urllib3 with this body."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda: urllib3.HTTPResponse(BytesIO(raw), headers=headers, status=status, preload_content=True)


def failing(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


POOL: Any = SimpleNamespace(host="cvat.example", port=443, scheme="https")


@pytest.mark.parametrize(
    ("answer", "transient", "reason"),
    [
        (response(401, {"detail": f"Invalid token {SECRET}."}), False, r"token was refused .*Invalid token \*\*\*"),
        (response(403, {"detail": "Only 3 projects are allowed"}), False, "access was denied .*Only 3"),
        (response(404, {"detail": "Not found."}), False, "an object was not found"),
        (response(400, {"name": ["too long"]}), False, "status 400.*too long"),
        (response(301, Location="https://elsewhere"), False, "points elsewhere"),
        (response(413, b"<html>"), False, "status 413"),
        (response(429), True, "status 429"),
        (response(500, b"<html>oops"), True, "status 500"),
        (response(502, b"\xff\xfe"), True, "status 502"),
        (response(200, b"<html>Some other program"), False, "is not that of CVAT"),
        (response(200, ["no", "projects"]), False, "is not that of CVAT"),
        (response(200, {"count": 1, "results": [{"id": "x"}], "next": None}), False, "is not that of CVAT"),
        (response(200, {"count": 1, "results": 5}), False, "is not that of CVAT"),
        (response(200, {}), False, "is not that of CVAT"),
        (failing(urllib3.exceptions.ReadTimeoutError(POOL, "/", "timed out")), True, "did not respond in time"),
        (failing(urllib3.exceptions.ProtocolError("cut")), True, "the connection failed"),
        (failing(urllib3.exceptions.NewConnectionError(POOL, f"refused {SECRET}")), True, "the connection failed"),
        (failing(urllib3.exceptions.SSLError("self-signed certificate")), False, "expected a certificate"),
    ],
)
def test_every_failure_is_a_provider_error(answer: Callable[[], Any], transient: bool, reason: str) -> None:
    network = Answering(answer)
    with (
        CvatClient("http://127.0.0.1:9", SECRET, network=network) as client,
        pytest.raises(ProviderError, match=reason) as raised,
    ):
        client.list_projects()
    assert raised.value.transient is transient
    assert SECRET not in str(raised.value)
    assert str(raised.value).startswith("CVAT at http://127.0.0.1:9: ")
    assert raised.value.fix
    assert network.num_calls == 1


def test_the_token_is_not_in_the_representation() -> None:
    assert SECRET not in repr(CvatClient("http://127.0.0.1:9", SECRET))


def test_a_wrong_token_a_missing_one_and_a_server_that_is_down(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = team.make_batch(1, [0])
    team.provider.check()
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", SECRET)
    for call in (team.provider.check, lambda: team.provider.deliver(delivery), lambda: team.provider.collect(delivery)):
        with pytest.raises(ProviderError, match="the token was refused") as refused:
            call()
        assert not refused.value.transient
        assert SECRET not in str(refused.value)
    team.settings["url"] = "http://127.0.0.1:9"
    with pytest.raises(ProviderError, match=r"the connection failed .*Start it, or correct provider\.url") as down:
        team.provider.check()
    assert down.value.transient
    monkeypatch.delenv("CVAT_ACCESS_TOKEN")
    with pytest.raises(UserError, match="CVAT_ACCESS_TOKEN: the environment variable is not set"):
        team.provider.check()


@pytest.mark.parametrize("url", ["http://cvat.example.com", "ftp://127.0.0.1", "cvat.example.com"])
def test_the_token_is_not_sent_where_others_can_read_it(team: Team, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    team.settings["url"] = url
    with pytest.raises(UserError, match="expected https://"):
        team.provider.check()
    monkeypatch.setenv("CVAT_ALLOW_HTTP", "1")
    team.network = Answering(response(401))
    with pytest.raises(UserError, match="token was refused" if url.startswith("http:") else "expected https://"):
        team.provider.check()


def test_a_class_that_was_removed_stops_collecting_until_it_is_back(team: Team) -> None:
    delivery = team.deliver(team.make_batch(1, range(2)))
    team.fake.finish(delivery.image_ids[0])
    (project,) = team.fake.projects.values()
    labels = project.labels
    project.labels = [label for label in labels if "knife" not in label["name"]]
    for call in (team.provider.collect, team.provider.deliver):
        with pytest.raises(ProviderError, match=r"lack 'fork & <knife>'.*rectangle for each class") as raised:
            call(delivery)
        assert f"/projects/{project.number}" in str(raised.value)
    project.labels = labels
    assert len(team.provider.collect(delivery)) == 2


def test_a_missing_image_is_an_error_with_its_name(team: Team) -> None:
    delivery = team.make_batch(1, [0])
    team.workspace.images.joinpath("0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png: the image cannot be read .* dvc checkout"):
        team.provider.deliver(delivery)
    assert not team.fake.tasks


def test_what_browsers_do_not_show_is_sent_as_png(team: Team) -> None:
    from PIL import Image

    delivery = team.make_batch(1, [0])
    Image.new("CMYK", (320, 240)).save(team.workspace.images / "0.png", format="TIFF")
    team.provider.deliver(delivery)
    (task,) = team.fake.tasks.values()
    assert task.frames == [(f"0001-{delivery.image_ids[0]}.png", 320, 240)]
    assert next(iter(task.uploading.values())).startswith(b"\x89PNG")


def test_images_that_the_server_cannot_read_are_named_and_sent_again(team: Team) -> None:
    delivery = team.make_batch(1, [0])
    team.fake.is_disk_full = True
    with pytest.raises(ProviderError, match=r"cannot read the images of task \d+ .*no space left"):
        team.provider.deliver(delivery)
    team.fake.is_disk_full = False
    team.provider.deliver(delivery)
    assert [len(task.frames) for task in team.fake.tasks.values()] == [1]


def test_a_queue_that_stands_still_is_an_outage(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvat_client, "_IMPORT_LIMIT_S", 0.05)
    team.fake.import_takes_calls = 10**6
    delivery = team.make_batch(1, [0])
    for _ in range(2):
        with pytest.raises(ProviderError, match="were not read within") as raised:
            team.provider.deliver(delivery)
        assert raised.value.transient
    assert len(team.fake.tasks) == 1
    for request in team.fake.requests.values():
        request.calls_left = 1
    team.provider.deliver(delivery)
    assert [len(task.frames) for task in team.fake.tasks.values()] == [1]


def test_another_folders_project_is_refused_until_it_is_taken_over(team: Team) -> None:
    first = settle(team.workspace, None)
    team.deliver(team.make_batch(1, [0]))
    assert isinstance(team.provider, OwnedProvider)
    assert team.provider.take_over() is None
    second = settle(team.workspace, None)  # as a copy that was adopted
    with pytest.raises(ProviderError, match=r"it belongs to .*gleaner adopt"):
        team.provider.check()
    assert team.provider.take_over() == str(first.place)
    (guide,) = team.fake.guides.values()
    assert second.owner_id in guide["markdown"]
    assert first.owner_id not in guide["markdown"]
    assert "Finish the job" in guide["markdown"]
    team.provider.check()
    guide["markdown"] = "edited by a person"
    team.provider.check()  # nobody is named


def test_without_the_extra_the_message_says_how_to_install_it(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(REPOSITORY / "params.yaml")
    chosen = params.model_copy(update={"provider": team.provider._params})
    assert create_provider(team.workspace, chosen).name == "cvat"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"cvat-sdk is not installed.*pip install 'gleaner\[cvat\]'"):
        create_provider(team.workspace, chosen)
