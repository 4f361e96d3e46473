"""Send notifications about a campaign to people: a run that failed, a refused promotion, a low label supply.

Two environment variables name the receivers, and both may be set:

- ``GLEANER_NOTIFY_URLS``: URLs of Apprise (Slack, Teams, mail, PagerDuty and others), separated by blanks or commas;
- ``GLEANER_WEBHOOK_URL``: an http(s) URL that gets one POST with the JSON fields of ``_json_payload``.

Such a URL is a secret with most services, so no message ever contains one. A notification that cannot be sent is a
warning in the log and never an error.
"""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

from flows.runtime.process_env import redact
from flows.workspace.lock import LockHeldError
from flows.workspace.rounds import newest_round_or_none
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

WEBHOOK_URL_ENV = "GLEANER_WEBHOOK_URL"
NOTIFY_URLS_ENV = "GLEANER_NOTIFY_URLS"
Event = Literal["run_failed", "promotion_refused", "label_supply_low"]

_TIMEOUT_S = 5.0
_DELAYS_S = (1.0, 4.0)
_CLIENT_ERRORS = range(400, 500)
_RETRYABLE_STATUS_CODES = (408, 425, 429)
_log = logging.getLogger(__name__)
_NOTIFIED_ATTRIBUTE = "gleaner_notified"


@dataclass(frozen=True)
class Notification:
    """An event of a campaign."""

    campaign: str
    round: int | None
    event: Event
    message: str

    @property
    def subject(self) -> str:
        """The campaign and, where known, the round."""
        return self.campaign if self.round is None else f"{self.campaign}, round {self.round}"


def notify(notification: Notification, *, timeout_s: float = _TIMEOUT_S, delays_s: Sequence[float] = _DELAYS_S) -> bool:
    """Send a notification to every configured receiver and return whether there is one and all have accepted it.

    Never raises. With the defaults, it takes less than 20 s for the webhook and less than 40 s for Apprise, whose
    receivers are notified in parallel.

    Args:
        notification: what to send.
        timeout_s: time limit of one attempt, in seconds.
        delays_s: delays before each further attempt, in seconds.
    """
    notification = Notification(**{**asdict(notification), "message": redact(notification.message)})
    results = []
    if url := os.environ.get(WEBHOOK_URL_ENV):
        results.append(_notify_webhook(url, notification, timeout_s, delays_s))
    if urls := os.environ.get(NOTIFY_URLS_ENV):
        results.append(_notify_apprise(urls, notification, timeout_s, delays_s))
    return bool(results) and all(results)


def _notify_apprise(urls: str, notification: Notification, timeout_s: float, delays_s: Sequence[float]) -> bool:
    from apprise import Apprise, AppriseAsset, NotifyFormat, NotifyType  # most runs have nothing to send

    asset = AppriseAsset(
        app_id="Gleaner",
        http_redirects=False,  # a redirected POST would become a GET elsewhere: the message lost, and no error
        default_service_retry=len(delays_s),
        default_service_wait=sum(delays_s) / max(len(delays_s), 1),
    )
    with _silent_apprise_logger():
        receivers = Apprise(asset=asset)
        all_valid = receivers.add(urls)
        for receiver in receivers:
            receiver.socket_connect_timeout = receiver.socket_read_timeout = timeout_s
        accepted = len(receivers) > 0 and receivers.notify(
            title=f"Gleaner: {notification.event.replace('_', ' ')}",
            body=f"{notification.subject}: {notification.message}",
            notify_type=NotifyType.FAILURE if notification.event == "run_failed" else NotifyType.WARNING,
            body_format=NotifyFormat.TEXT,
        )
    if not all_valid:
        _log.warning("%s: at least one entry is no URL that Apprise knows. Check its spelling.", NOTIFY_URLS_ENV)
    if len(receivers) and not accepted:
        names = ", ".join(str(receiver.service_name) for receiver in receivers)
        _log.warning(
            "The notification %s was not accepted by every receiver of %s (%s).",
            notification.event,
            NOTIFY_URLS_ENV,
            names,
        )
    return bool(all_valid and accepted)


@contextmanager
def _silent_apprise_logger() -> Iterator[None]:
    """Drop Apprise's own log records within the block: some contain the URL."""
    logger = logging.getLogger("apprise")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def _notify_webhook(url: str, notification: Notification, timeout_s: float, delays_s: Sequence[float]) -> bool:
    if urlsplit(url).scheme not in ("http", "https"):
        _log.warning("%s: the URL does not begin with http:// or https://. Nothing is sent to it.", WEBHOOK_URL_ENV)
        return False
    problem = ""
    for delay_s in (0.0, *delays_s):
        time.sleep(delay_s)
        problem, is_permanent = _post(url, _json_payload(notification), timeout_s)
        if not problem:
            return True
        if is_permanent:
            break
    _log.warning("The notification %s was not sent: %s.", notification.event, redact(problem))
    return False


def _json_payload(notification: Notification) -> bytes:
    """Serialize a notification; Slack, Mattermost and Teams show ``text``."""
    content = {
        **asdict(notification),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "text": f"Gleaner, {notification.subject}: {notification.message}",
    }
    return json.dumps(content).encode()


def _post(url: str, body: bytes, timeout_s: float) -> tuple[str, bool]:
    """Post ``body``; return what went wrong (empty: nothing), and whether another attempt is pointless."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with _OPENER.open(request, timeout=timeout_s):
            return "", False
    except urllib.error.HTTPError as error:
        error.close()
        is_permanent = error.code in _CLIENT_ERRORS and error.code not in _RETRYABLE_STATUS_CODES
        return f"the HTTP status is {error.code}", is_permanent
    except (OSError, ValueError) as error:  # refused, timeout, unknown host, no HTTP
        reason = getattr(error, "reason", error)
        return f"{type(reason).__name__}: {reason}", False


class _NoRedirectHandler(urllib.request.HTTPRedirectHandler):
    """Refuse redirects: a redirected POST would become a GET elsewhere, with the message lost and no error."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Return nothing, so that the caller gets the 3xx as an error."""


_OPENER = urllib.request.build_opener(_NoRedirectHandler)


@contextmanager
def notify_on_failure(workspace: Workspace) -> Iterator[None]:
    """Send a notification about the exception that ends this block, and let it pass.

    The flow reports its own failures. The command line reports what fails before a flow can begin, such as Prefect's
    server; an exception that the flow has reported is marked, so that it is not reported again.

    Not reported: what a person did (Ctrl-C, SIGTERM and a cancelled run are not errors), and a run that is refused
    because another one holds the lock.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, LockHeldError) and not _is_already_notified(error):
            notify(Notification(workspace.root.name, newest_round_or_none(workspace), "run_failed", _message(error)))
            setattr(error, _NOTIFIED_ATTRIBUTE, True)
        raise


def _is_already_notified(error: BaseException) -> bool:
    """Tell whether this exception, or one that caused it, has been reported."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, _NOTIFIED_ATTRIBUTE, False):
            return True
        cause = cause.__cause__
    return False


def _message(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
