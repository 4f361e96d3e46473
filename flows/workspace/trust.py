"""Run nothing of a campaign that is only looked at.

A campaign is code: DVC runs the commands in its ``dvc.yaml``, remotes and git configuration can name programs, and
parameters can name a class. Commands that go on with a campaign, such as ``gleaner run``, trust it. Those that only
look at one (``audit``, ``lineage``, ``gc``, ``doctor``, ``status``) run none of that unless a person says ``--trust``.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.workspace import git
from tasks.runtime.errors import UserError

TRUST_HINT = "If you trust this campaign's authors: --trust"
_TRUSTED_ENV = "GLEANER_TRUSTED_CAMPAIGN"
"""Folder of the campaign that this process and its children trust."""
_HARMLESS_REMOTE_KEYS = frozenset({
    "url", "jobs", "checksum_jobs", "worktree", "no_traverse", "version_aware", "verify", "type", "shared", "protected",
    "slow_link_warning", "region", "profile", "endpointurl", "access_key_id", "secret_access_key", "session_token",
    "listobjects", "use_ssl", "allow_anonymous_login", "ssl_verify", "sse", "sse_kms_key_id", "acl", "cache_regions",
    "read_timeout", "connect_timeout", "connection_timeout", "timeout", "projectname", "port", "user", "password",
    "auth", "custom_auth_header", "method", "token", "account_name", "account_key", "connection_string", "sas_token",
    "tenant_id", "client_id", "client_secret",
})  # fmt: skip
"""Of DVC's remotes. All others name files or programs of the campaign: ``configpath`` leads to a
``credential_process``, ``bearer_token_command`` is one."""
_PROGRAM_SETTINGS = re.compile(
    r"(include|includeif|filter|alias|credential|uploadpack|protocol|pager|merge|mergetool|difftool|sequence)\."
    r"|diff\.(external$|.*\.(command|textconv)$)"
    r"|core\.(fsmonitor|hookspath|sshcommand|gitproxy|pager|editor|askpass|alternaterefscommand|worktree)$"
    r"|gpg\.(.*\.)?(program|defaultkeycommand)$"
    r"|remote\..*\.(uploadpack|receivepack|vcs|promisor)$|extensions\.(worktreeconfig|partialclone)$|interactive\.",
    re.IGNORECASE,
)
"""Names of git settings whose values git runs, or that lead to such settings."""


def trust(root: Path) -> None:
    """Trust a campaign in this process and in its children."""
    os.environ[_TRUSTED_ENV] = str(root.resolve())


def is_trusted(root: Path) -> bool:
    """Tell whether a command that goes on with the campaign, or a person, has said that it is trusted."""
    return os.environ.get(_TRUSTED_ENV) == str(root.resolve())


def require_harmless_git(root: Path) -> None:
    """Refuse a repository whose own configuration names programs that git may run. A clone has no such configuration.

    Raises:
        UserError: names the setting.
    """
    if is_trusted(root):
        return
    # Read as a file: no command of git's is run on the repository before.
    names = git.run_git(root, "config", "--local", "--no-includes", "--name-only", "--list").splitlines()
    found = sorted({name for name in names if _PROGRAM_SETTINGS.match(name)})
    if found:
        problem = f"it sets {', '.join(found[:5])}, expected no setting that can make git run a program"
        raise UserError(root / ".git" / "config", problem, TRUST_HINT)


def harmful_settings(remotes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return remote and key of the settings of DVC's remotes that can run a program.

    Args:
        remotes: section ``remote`` of DVC's configuration.
    """
    return [(name, key) for name, settings in remotes.items() for key in settings if key not in _HARMLESS_REMOTE_KEYS]
