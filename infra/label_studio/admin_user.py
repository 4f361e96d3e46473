"""The first user of a Label Studio: from the environment, or made up once and kept in a file for its owner only."""

import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.services.private import write_private

CREDENTIALS_FILE = "account.env"
_EMAIL, _PASSWORD, _TOKEN = "LABEL_STUDIO_USERNAME", "LABEL_STUDIO_PASSWORD", "LABEL_STUDIO_API_KEY"


@dataclass(frozen=True, repr=False)  # a repr would put the secrets into logs
class AdminUser:
    """Who owns the server, and the token that programs use in their name."""

    email: str
    password: str
    token: str
    """40 hex digits."""


def load_or_create_admin(data: Path, environ: Mapping[str, str]) -> AdminUser:
    """Return the account of a data folder: from the environment, else as kept there, else made up and kept.

    What the environment says is written nowhere. The file can be sourced by a shell: ``. DATA/account.env`` sets
    LABEL_STUDIO_API_KEY for ``gleaner run``.
    """
    path = data / CREDENTIALS_FILE
    stored = _read_env_file(path) if path.is_file() else {}
    generated = {_EMAIL: "gleaner@example.com", _PASSWORD: secrets.token_urlsafe(18), _TOKEN: secrets.token_hex(20)}
    missing = {name: value for name, value in generated.items() if not environ.get(name) and name not in stored}
    if missing:
        stored |= missing
        write_private(path, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in stored.items()))
    email, password, token = (environ.get(name) or stored[name] for name in generated)
    return AdminUser(email, password, token)


def _read_env_file(path: Path) -> dict[str, str]:
    assignments = [word for word in shlex.split(path.read_text()) if "=" in word]
    return dict(word.split("=", 1) for word in assignments)
