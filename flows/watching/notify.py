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

from flows.watching.secrets import without_secrets

URL_VARIABLE = "GLEANER_WEBHOOK_URL"
Event = Literal["night_failed", "promotion_refused", "labels_running_dry"]

_LIMIT_S = 5.0
_DELAYS_S = (1.0, 4.0)
_CLIENT_ERRORS = range(400, 500)
_WORTH_ANOTHER_TRY = (408, 425, 429)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notice:
    """What happened, to whom."""

    campaign: str
    round: int | None
    event: Event
    message: str


def notify(notice: Notice, *, limit_s: float = _LIMIT_S, delays_s: Sequence[float] = _DELAYS_S) -> bool:
    """Send a notice; whether it arrived. Never raises, and takes at most some 20 s.

    Args:
        notice: to send.
        limit_s: of one attempt, in seconds.
        delays_s: before each further attempt, in seconds.
    """
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        return False
    if urlsplit(url).scheme not in ("http", "https"):
        _log.warning("%s: the address begins with no http:// or https://, so nothing is sent.", URL_VARIABLE)
        return False
    problem = ""
    for delay_s in (0.0, *delays_s):
        time.sleep(delay_s)
        problem, hopeless = _post(url, _body(notice), limit_s)
        if not problem:
            return True
        if hopeless:
            break
    _log.warning("The notification %s was not sent: %s.", notice.event, without_secrets(problem))
    return False


def _body(notice: Notice) -> bytes:
    """JSON; ``text`` is what Slack, Mattermost and Teams show."""
    message = without_secrets(notice.message)
    where = notice.campaign if notice.round is None else f"{notice.campaign}, round {notice.round}"
    content = {
        **asdict(notice),
        "message": message,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "text": f"Gleaner, {where}: {message}",
    }
    return json.dumps(content).encode()


def _post(url: str, body: bytes, limit_s: float) -> tuple[str, bool]:
    """What went wrong (empty: nothing), and whether another attempt is pointless."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with _OPENER.open(request, timeout=limit_s):
            return "", False
    except urllib.error.HTTPError as error:
        error.close()
        hopeless = error.code in _CLIENT_ERRORS and error.code not in _WORTH_ANOTHER_TRY
        return f"the answer is {error.code}", hopeless
    except (OSError, ValueError) as error:  # refused, timeout, unknown host, no HTTP
        reason = getattr(error, "reason", error)
        return f"{type(reason).__name__}: {reason}", False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET somewhere else, with the message lost and no error."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Refuse; the caller sees the 3xx as an error."""


_OPENER = urllib.request.build_opener(_NoRedirect)
