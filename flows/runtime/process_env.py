"""Set the environment of every command, and keep its secrets out of messages, logs and notifications.

No telemetry, no prompts, each tool's state inside the workspace. ``prepare_environment`` must run before prefect,
mlflow or dvc is imported. Variables that the user has set are kept.
"""

import os
import pwd
import re
import tomllib
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

_DEFAULT_ENV = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that hangs costs two minutes per attempt instead of 15; the tasks of a run have their own retries.
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # A file of the campaign, such as random.py, must not take the place of a module in its child processes.
    "PYTHONSAFEPATH": "1",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default, 20, is what a first start takes
    # Prefect's own messages stay out of the terminal; those of flows and stages do not.
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "INFO",
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "INFO",
}
_SECRET_NAME_PATTERN = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH_STRING|WEBHOOK", re.IGNORECASE)
_SECRET_LIST_NAME = "GLEANER_NOTIFY_URLS"
_URL_PASSWORD_PATTERN = re.compile(r"(?<=://)(?:[^/@\s]+|[^/@\s:]*:[^@\s]+)(?=@)")
"""User and password, or a token alone; the password may hold a slash."""
_MIN_SECRET_LENGTH = 6
_REDACTED = "***"


def prepare_environment(root: Path) -> None:
    """Set the defaults for a process that works in the workspace ``root``."""
    for name, value in _DEFAULT_ENV.items():
        os.environ.setdefault(name, value)
    _name_unknown_user(root)
    if "PREFECT_HOME" not in os.environ and not has_prefect_server():
        os.environ["PREFECT_HOME"] = str(root.resolve() / ".prefect")


def _name_unknown_user(root: Path) -> None:
    """Give a user whom the machine does not know (as in OpenShift) a name and a home: DVC and Prefect ask for both."""
    try:
        pwd.getpwuid(os.getuid())
        return
    except KeyError:
        name = f"uid-{os.getuid()}"
    for variable in ("LOGNAME", "USER"):
        os.environ.setdefault(variable, name)
    home = os.environ.get("HOME", "")
    if not home or not os.access(home, os.W_OK):
        os.environ["HOME"] = str(root.resolve() / ".gleaner" / "home")


def has_prefect_server() -> bool:
    """Tell whether the user has configured a Prefect server, in the environment or in the active profile."""
    return bool(os.environ.get("PREFECT_API_URL") or _profile_api_url())


def tracking_uri(root: Path) -> str:
    """Return the user's ``MLFLOW_TRACKING_URI``, or the URI of a SQLite database in the workspace ``root``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def _profile_api_url() -> str | None:
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return None
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    url = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return str(url) if url else None


def redact(text: str) -> str:
    """Replace the values of secret environment variables, and passwords in URLs, by ``***``."""
    for value in _secrets(tuple(os.environ.items())):
        text = text.replace(value, _REDACTED)
    return _URL_PASSWORD_PATTERN.sub(_REDACTED, text)


@lru_cache(maxsize=4)
def _secrets(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Return the values to replace, the longest first."""
    values = [value for name, value in environment if _SECRET_NAME_PATTERN.search(name)]
    for _, address in environment:  # a password stands in an address as it is, and in messages perhaps decoded
        if "@" in address and (match := _URL_PASSWORD_PATTERN.search(address)):
            password = match[0].partition(":")[2] or match[0]
            values += [password, unquote(password)]
    values += re.split(r"[\s,]+", dict(environment).get(_SECRET_LIST_NAME, ""))
    return tuple(sorted({value for value in values if len(value) >= _MIN_SECRET_LENGTH}, key=len, reverse=True))
