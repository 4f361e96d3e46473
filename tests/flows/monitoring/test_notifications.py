"""Notifications to a real server on loopback that is well, broken, slow or somewhere else."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flows.monitoring.notifications import NOTIFY_URLS_ENV, WEBHOOK_URL_ENV, Notification, notify, notify_on_failure
from flows.runtime.process_env import redact
from flows.workspace.lock import LockHeldError
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

NOTICE = Notification("screws", 3, "run_failed", "train: the loss is nan, expected a number.")


class Receiver(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[dict[str, Any]] = []
        self.answers: list[int] = []
        """Status codes to give; 0 hangs; afterwards always 200."""
        self.release = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/hook/T0P-5ECRET"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(content))
        code = self.server.answers.pop(0) if self.server.answers else 200
        if code == 0:
            self.server.release.wait(30)
            return
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.delenv(NOTIFY_URLS_ENV, raising=False)
    monkeypatch.setenv(WEBHOOK_URL_ENV, server.url)
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def send(**limits: Any) -> bool:
    return notify(NOTICE, **{"timeout_s": 20.0, "delays_s": (0.0, 0.0), **limits})


def test_a_notice_says_where_what_and_when(receiver: Receiver) -> None:
    assert send()
    (sent,) = receiver.received
    assert sent.pop("time").endswith("+00:00")
    assert sent == {
        "campaign": "screws",
        "round": 3,
        "event": "run_failed",
        "message": NOTICE.message,
        "text": f"Gleaner, screws, round 3: {NOTICE.message}",
    }


def test_a_server_that_recovers_gets_it_on_the_third_attempt(receiver: Receiver) -> None:
    receiver.answers = [500, 503]
    assert send()
    assert len(receiver.received) == 3


def test_a_server_that_stays_broken_is_a_warning_without_the_address(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [500, 500, 500, 500]
    assert not send()
    assert len(receiver.received) == 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the HTTP status is 500" in caplog.text
    assert "T0P-5ECRET" not in caplog.text


@pytest.mark.parametrize("code", [302, 404, 410])
def test_what_will_not_change_is_not_tried_for_long(receiver: Receiver, code: int) -> None:
    receiver.answers = [code, code, code]
    assert not send()
    assert len(receiver.received) == (3 if code == 302 else 1)


def test_a_server_that_hangs_costs_its_limit_and_no_more(receiver: Receiver) -> None:
    receiver.answers = [0, 0, 0]
    started_s = time.monotonic()
    assert not send(timeout_s=0.3)
    assert 0.9 <= time.monotonic() - started_s < 5
    assert len(receiver.received) == 3


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEBHOOK_URL_ENV, "http://127.0.0.1:1/")
    assert not send()


def test_no_address_no_notice_and_no_word(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv(WEBHOOK_URL_ENV, raising=False)
    assert not send()
    assert caplog.records == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/", "hooks.example.com/x"])
def test_only_http(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str) -> None:
    monkeypatch.setenv(WEBHOOK_URL_ENV, url)
    assert not send()
    assert "does not begin with http" in caplog.text


def test_secrets_stay_here(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "abcdef0123456789")
    message = "http://me:pass-word@mlflow:5000 refused abcdef0123456789"
    assert notify(Notification("screws", None, "run_failed", message), delays_s=())
    assert receiver.received[0]["message"] == "http://***@mlflow:5000 refused ***"
    assert receiver.received[0]["text"] == "Gleaner, screws: http://***@mlflow:5000 refused ***"


@pytest.fixture
def apprise_url(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same server as a receiver of Apprise, and no plain webhook."""
    monkeypatch.delenv(WEBHOOK_URL_ENV)
    return receiver.url.replace("http://", "json://")


@pytest.mark.parametrize("separator", [" ", ", ", ","])
def test_several_urls_each_get_it(
    receiver: Receiver, apprise_url: str, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    monkeypatch.setenv(NOTIFY_URLS_ENV, separator.join([apprise_url, f"{apprise_url}/2"]))
    assert send()
    assert [sent["title"] for sent in receiver.received] == ["Gleaner: run failed"] * 2
    assert [sent["message"] for sent in receiver.received] == [f"screws, round 3: {NOTICE.message}"] * 2
    assert [sent["type"] for sent in receiver.received] == ["failure"] * 2


def test_both_variables_are_served(receiver: Receiver, apprise_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTIFY_URLS_ENV, apprise_url)
    monkeypatch.setenv(WEBHOOK_URL_ENV, receiver.url)
    assert send()
    assert sorted("text" in sent for sent in receiver.received) == [False, True]


def test_an_apprise_receiver_that_recovers_gets_it_on_the_third_attempt(
    receiver: Receiver, apprise_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NOTIFY_URLS_ENV, apprise_url)
    receiver.answers = [500, 503]
    assert send()
    assert len(receiver.received) == 3


@pytest.mark.parametrize("codes", [[500] * 3, [404] * 3, [302] * 3, [0] * 3])
def test_an_apprise_receiver_that_fails_is_one_warning_without_its_url(
    receiver: Receiver,
    apprise_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    codes: list[int],
) -> None:
    caplog.set_level(logging.DEBUG, logger="apprise")
    monkeypatch.setenv(NOTIFY_URLS_ENV, apprise_url)
    receiver.answers = codes
    started_s = time.monotonic()
    assert not send(timeout_s=0.3)
    assert time.monotonic() - started_s < 10
    assert len(receiver.received) == 3
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in warnings] == ["flows.monitoring.notifications"]
    assert "T0P-5ECRET" not in caplog.text


def test_an_entry_that_is_no_url_is_a_warning_and_the_others_get_it(
    receiver: Receiver, apprise_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(NOTIFY_URLS_ENV, f"{apprise_url} slakc://T0KEN/A/B")
    assert not send()
    assert len(receiver.received) == 1
    assert NOTIFY_URLS_ENV in caplog.text
    assert "T0KEN" not in caplog.text
    assert not logging.getLogger("apprise").disabled


def test_urls_of_apprise_are_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTIFY_URLS_ENV, "json://host/T0KEN-A, slack://T0KEN-B/x")
    assert redact("posted to slack://T0KEN-B/x and json://host/T0KEN-A") == "posted to *** and ***"


def test_a_failure_is_told_once_however_deep(receiver: Receiver, small_campaign: Workspace) -> None:
    def inner() -> None:
        with notify_on_failure(small_campaign):
            raise ConnectionError("first line\nsecond line")

    def outer() -> None:
        with notify_on_failure(small_campaign):
            try:
                inner()
            except ConnectionError as error:
                raise UserError("MLflow", "it does not answer") from error

    with pytest.raises(UserError):
        outer()
    (sent,) = receiver.received
    assert (sent["event"], sent["round"], sent["message"]) == ("run_failed", 0, "ConnectionError: first line")


@pytest.mark.parametrize("what", [KeyboardInterrupt(), SystemExit(143), LockHeldError("here", None)])
def test_what_is_no_failure_is_not_told(receiver: Receiver, small_campaign: Workspace, what: BaseException) -> None:
    with pytest.raises(type(what)), notify_on_failure(small_campaign):
        raise what
    assert receiver.received == []


def test_a_campaign_without_batches_fails_without_a_round(receiver: Receiver, tmp_path: Any) -> None:
    with pytest.raises(UserError), notify_on_failure(Workspace(tmp_path)):
        raise UserError("x", "y is 1, expected 2")
    assert receiver.received[0]["round"] is None
