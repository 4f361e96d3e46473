"""Keep secrets out of what leaves the process: messages, logs, notifications."""

import os
import re

_SECRET_NAME_PATTERN = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH_STRING|WEBHOOK", re.IGNORECASE)
_SECRET_LIST_NAME = "GLEANER_NOTIFY_URLS"
_URL_PASSWORD_PATTERN = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
_MIN_SECRET_LENGTH = 6
_REDACTED = "***"


def redact(text: str) -> str:
    """Replace the values of secret environment variables, and passwords in URLs, by ``***``."""
    values = [value for name, value in os.environ.items() if _SECRET_NAME_PATTERN.search(name)]
    values += re.split(r"[\s,]+", os.environ.get(_SECRET_LIST_NAME, ""))
    for value in sorted(set(values), key=len, reverse=True):
        if len(value) >= _MIN_SECRET_LENGTH:
            text = text.replace(value, _REDACTED)
    return _URL_PASSWORD_PATTERN.sub(_REDACTED, text)
