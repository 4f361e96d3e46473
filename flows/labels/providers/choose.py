"""From ``provider.kind`` in params.yaml to the provider itself."""

from flows.labels.providers.base import LabelProvider
from flows.labels.providers.folder.provider import FolderProvider
from flows.labels.providers.simulated import OracleProvider
from tasks.params import Params
from tasks.paths import Workspace


def create_provider(workspace: Workspace, params: Params) -> LabelProvider:
    """The label provider of a campaign."""
    if params.provider.kind == "folder":
        return FolderProvider(params.provider, params.classes, workspace.root)
    if params.provider.kind == "label_studio":
        from flows.labels.providers.label_studio.provider import (
            LabelStudioProvider,  # its SDK takes a second to import
        )

        return LabelStudioProvider(workspace, params.classes, params.provider)
    return OracleProvider(workspace.oracle, params.classes, params.budget)
