"""Keeps secrets out of what leaves the process: messages, logs, notifications."""

import os
import re

_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH_STRING|WEBHOOK", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
_SHORTEST = 6
_HIDDEN = "***"


def without_secrets(text: str) -> str:
    """``text`` without the values of secret environment variables and without passwords in addresses."""
    values = {value for name, value in os.environ.items() if _NAMES.search(name) and len(value) >= _SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, _HIDDEN)
    return _IN_URL.sub(_HIDDEN, text)
