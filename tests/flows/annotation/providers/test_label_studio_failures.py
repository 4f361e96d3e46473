"""Every failure of a server is one error that says whether waiting helps and never contains the token."""

from collections.abc import Callable

import httpx
import pytest

from flows.annotation.providers.base import ProviderError
from flows.annotation.providers.label_studio_client import LabelStudioClient, OpenTask, Project

TOKEN = "0123456789abcdef0123456789abcdef01234567"
EXPIRED = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCIsImV4cCI6MTYwMDAwMDAwMH0."
    "c2lnbmF0dXJlLW9mLW5vYm9keS1hdC1hbGwtMTIzNDU2Nzg5MA"
)


def client_with(response: Callable[[httpx.Request], httpx.Response]) -> LabelStudioClient:
    return LabelStudioClient("http://127.0.0.1:9/", TOKEN, httpx.MockTransport(response))


def failing(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def response(_: httpx.Request) -> httpx.Response:
        raise error

    return response


@pytest.mark.parametrize(
    ("response", "transient", "reason"),
    [
        (failing(httpx.ConnectError(f"refused {TOKEN}")), True, "the connection failed when listing its projects"),
        (failing(httpx.ReadError("reset")), True, r"\(reset\)"),
        (failing(httpx.RemoteProtocolError("cut")), True, "No label is lost"),
        (failing(httpx.ReadTimeout("slow")), True, "did not respond in time"),
        (failing(httpx.UnsupportedProtocol("no http://")), False, "provider.url"),
        (lambda _: httpx.Response(401, json={"detail": f"Invalid token {TOKEN}"}), False, "the token was refused"),
        (lambda _: httpx.Response(403, json={"detail": "no"}), False, "manage projects"),
        (lambda _: httpx.Response(404, json={"detail": "Not found."}), False, "an object was not found"),
        (lambda _: httpx.Response(400, json={"validation_errors": {"title": ["bad"]}}), False, r"status 400.*bad"),
        (lambda _: httpx.Response(429), True, "status 429"),
        (lambda _: httpx.Response(500, text="<html>oops"), True, "Read the server's log"),
        (lambda _: httpx.Response(502), True, "status 502"),
        (lambda _: httpx.Response(200, text="<html>Some other program"), False, "is no JSON"),
        (lambda _: httpx.Response(200, json=["no", "projects"]), False, "is not that of Label Studio"),
        (lambda _: httpx.Response(200, json={"count": 1, "results": [{"id": "x"}]}), False, "not that of Label Studio"),
        (lambda _: httpx.Response(200, json={"count": 1, "results": 5}), False, "is not that of Label Studio"),
        (lambda _: httpx.Response(200, json={}), False, "is not that of Label Studio"),
    ],
)
def test_every_failure_is_a_provider_error(
    response: Callable[[httpx.Request], httpx.Response], transient: bool, reason: str
) -> None:
    with client_with(response) as broken, pytest.raises(ProviderError, match=reason) as raised:
        broken.list_projects()
    assert raised.value.transient is transient
    assert TOKEN not in str(raised.value)
    assert str(raised.value).startswith("Label Studio at http://127.0.0.1:9: ")
    assert raised.value.fix


def test_no_call_is_repeated() -> None:
    """An import that returned an error may have succeeded."""
    requested: list[str] = []

    def response(request: httpx.Request) -> httpx.Response:
        requested.append(request.url.path)
        return httpx.Response(503)

    with client_with(response) as broken, pytest.raises(ProviderError):
        broken.list_projects()
    assert len(requested) == 1


@pytest.mark.parametrize("content", [b"", b"[1, 2", b'{"detail": 1}', b"\xff\xfe[]"])
def test_an_export_that_is_no_list_is_invalid(content: bytes) -> None:
    project = Project(1, "http://127.0.0.1:9/projects/1", "t", "d", "<View/>")
    with (
        client_with(lambda _: httpx.Response(200, content=content)) as broken,
        pytest.raises(ProviderError, match="is not that of Label Studio"),
    ):
        broken.export_tasks(project, [OpenTask(1, "a" * 16, 1, 1, False)])


def test_a_token_that_has_expired_is_refused_at_once() -> None:
    with pytest.raises(ProviderError, match="the token was refused when logging in") as raised:
        LabelStudioClient("http://127.0.0.1:9", EXPIRED)
    assert EXPIRED not in str(raised.value)
    assert not raised.value.transient


def test_the_token_is_not_in_the_representation() -> None:
    with client_with(lambda _: httpx.Response(200)) as quiet:
        assert TOKEN not in repr(quiet)
