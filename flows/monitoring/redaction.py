"""Keeps secrets out of what leaves the process: messages, logs, notifications."""

import os
import re

_SECRET_NAME_PATTERN = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH_STRING|WEBHOOK", re.IGNORECASE)
_URL_PASSWORD_PATTERN = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
_MIN_SECRET_LENGTH = 6
_REDACTED = "***"


def redact(text: str) -> str:
    """``text`` without the values of secret environment variables and without passwords in addresses."""
    values = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME_PATTERN.search(name) and len(value) >= _MIN_SECRET_LENGTH
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, _REDACTED)
    return _URL_PASSWORD_PATTERN.sub(_REDACTED, text)
