"""Tells people what they have to know: one POST to the address in ``GLEANER_WEBHOOK_URL``, where it is set.

The address itself is a secret with most chat tools, so no message ever holds it. A notification that cannot be
sent is a warning in the log and nothing else.
"""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

from flows.monitoring.redaction import redact

WEBHOOK_URL_ENV = "GLEANER_WEBHOOK_URL"
Event = Literal["run_failed", "promotion_refused", "label_supply_low"]

_TIMEOUT_S = 5.0
_DELAYS_S = (1.0, 4.0)
_CLIENT_ERRORS = range(400, 500)
_RETRYABLE_STATUS_CODES = (408, 425, 429)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notification:
    """What happened, to whom."""

    campaign: str
    round: int | None
    event: Event
    message: str


def notify(notification: Notification, *, timeout_s: float = _TIMEOUT_S, delays_s: Sequence[float] = _DELAYS_S) -> bool:
    """Send a notice; whether it arrived. Never raises, and takes at most some 20 s.

    Args:
        notification: to send.
        timeout_s: of one attempt, in seconds.
        delays_s: before each further attempt, in seconds.
    """
    url = os.environ.get(WEBHOOK_URL_ENV, "")
    if not url:
        return False
    if urlsplit(url).scheme not in ("http", "https"):
        _log.warning("%s: the address begins with no http:// or https://, so nothing is sent.", WEBHOOK_URL_ENV)
        return False
    problem = ""
    for delay_s in (0.0, *delays_s):
        time.sleep(delay_s)
        problem, is_permanent = _post(url, _payload(notification), timeout_s)
        if not problem:
            return True
        if is_permanent:
            break
    _log.warning("The notification %s was not sent: %s.", notification.event, redact(problem))
    return False


def _payload(notification: Notification) -> bytes:
    """JSON; ``text`` is what Slack, Mattermost and Teams show."""
    message = redact(notification.message)
    where = (
        notification.campaign if notification.round is None else f"{notification.campaign}, round {notification.round}"
    )
    content = {
        **asdict(notification),
        "message": message,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "text": f"Gleaner, {where}: {message}",
    }
    return json.dumps(content).encode()


def _post(url: str, body: bytes, timeout_s: float) -> tuple[str, bool]:
    """What went wrong (empty: nothing), and whether another attempt is pointless."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with _OPENER.open(request, timeout=timeout_s):
            return "", False
    except urllib.error.HTTPError as error:
        error.close()
        is_permanent = error.code in _CLIENT_ERRORS and error.code not in _RETRYABLE_STATUS_CODES
        return f"the answer is {error.code}", is_permanent
    except (OSError, ValueError) as error:  # refused, timeout, unknown host, no HTTP
        reason = getattr(error, "reason", error)
        return f"{type(reason).__name__}: {reason}", False


class _NoRedirectHandler(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET somewhere else, with the message lost and no error."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Refuse; the caller sees the 3xx as an error."""


_OPENER = urllib.request.build_opener(_NoRedirectHandler)
