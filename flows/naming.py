"""What a campaign is called where names are keys."""

import re

from flows import vcs
from tasks.paths import Workspace

_MAX_NAME_LENGTH = 40


def campaign_key(workspace: Workspace) -> str:
    """The folder's name and eight digits of the campaign's id, in a-z, 0-9 and dashes: unique and readable."""
    name = re.sub(r"[^a-z0-9]+", "-", workspace.root.resolve().name.lower()).strip("-")[:_MAX_NAME_LENGTH].strip("-")
    return f"{name or 'campaign'}-{vcs.campaign_id(workspace.root)[:8]}"
