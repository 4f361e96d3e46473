"""Everything a server can do wrong has a name, says whether waiting helps, and never shows the token."""

from collections.abc import Callable

import httpx
import pytest

from flows.annotation.providers.base import ProviderError
from flows.annotation.providers.label_studio.client import LabelStudioClient, OpenTask, Project

TOKEN = "0123456789abcdef0123456789abcdef01234567"
EXPIRED = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCIsImV4cCI6MTYwMDAwMDAwMH0."
    "c2lnbmF0dXJlLW9mLW5vYm9keS1hdC1hbGwtMTIzNDU2Nzg5MA"
)


def client_with(answer: Callable[[httpx.Request], httpx.Response]) -> LabelStudioClient:
    return LabelStudioClient("http://127.0.0.1:9/", TOKEN, httpx.MockTransport(answer))


def failing(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "transient", "words"),
    [
        (failing(httpx.ConnectError(f"refused {TOKEN}")), True, "the connection fails on listing its projects"),
        (failing(httpx.ReadError("reset")), True, r"\(reset\)"),
        (failing(httpx.RemoteProtocolError("cut")), True, "Nothing is lost"),
        (failing(httpx.ReadTimeout("slow")), True, "no answer in time"),
        (failing(httpx.UnsupportedProtocol("no http://")), False, "provider.url"),
        (lambda _: httpx.Response(401, json={"detail": f"Invalid token {TOKEN}"}), False, "the token is refused"),
        (lambda _: httpx.Response(403, json={"detail": "no"}), False, "manage projects"),
        (lambda _: httpx.Response(404, json={"detail": "Not found."}), False, "something is gone"),
        (lambda _: httpx.Response(400, json={"validation_errors": {"title": ["bad"]}}), False, r"status 400.*bad"),
        (lambda _: httpx.Response(429), True, "status 429"),
        (lambda _: httpx.Response(500, text="<html>oops"), True, "Look into the server's log"),
        (lambda _: httpx.Response(502), True, "status 502"),
        (lambda _: httpx.Response(200, text="<html>Some other program"), False, "is no JSON"),
        (lambda _: httpx.Response(200, json=["no", "projects"]), False, "makes no sense"),
        (lambda _: httpx.Response(200, json={"count": 1, "results": [{"id": "x"}]}), False, "makes no sense"),
        (lambda _: httpx.Response(200, json={"count": 1, "results": 5}), False, "makes no sense"),
        (lambda _: httpx.Response(200, json={}), False, "makes no sense"),
    ],
)
def test_every_failure_has_a_name(
    answer: Callable[[httpx.Request], httpx.Response], transient: bool, words: str
) -> None:
    with client_with(answer) as broken, pytest.raises(ProviderError, match=words) as raised:
        broken.list_projects()
    assert raised.value.transient is transient
    assert TOKEN not in str(raised.value)
    assert str(raised.value).startswith("Label Studio at http://127.0.0.1:9: ")
    assert raised.value.fix


def test_nothing_is_tried_twice_in_one_call() -> None:
    """An import that was answered badly may have happened."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(503)

    with client_with(answer) as broken, pytest.raises(ProviderError):
        broken.list_projects()
    assert len(asked) == 1


@pytest.mark.parametrize("content", [b"", b"[1, 2", b'{"detail": 1}', b"\xff\xfe[]"])
def test_an_export_that_is_no_list_is_garbage(content: bytes) -> None:
    project = Project(1, "http://127.0.0.1:9/projects/1", "t", "d", "<View/>")
    with (
        client_with(lambda _: httpx.Response(200, content=content)) as broken,
        pytest.raises(ProviderError, match="makes no sense"),
    ):
        broken.export_tasks(project, [OpenTask(1, "a" * 16, 1, 1, False)])


def test_a_token_that_has_expired_is_refused_at_once() -> None:
    with pytest.raises(ProviderError, match="the token is refused on logging in") as raised:
        LabelStudioClient("http://127.0.0.1:9", EXPIRED)
    assert EXPIRED not in str(raised.value)
    assert not raised.value.transient


def test_a_server_does_not_show_its_token() -> None:
    with client_with(lambda _: httpx.Response(200)) as quiet:
        assert TOKEN not in repr(quiet)
