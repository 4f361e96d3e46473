"""Label providers behind the protocol ``flows.annotation.providers.base.LabelProvider``, and the choice among them."""

import importlib.util

from flows.annotation.providers.base import LabelProvider
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.runtime.errors import UserError
from tasks.runtime.extensions import is_class_path, load_extension


def create_provider(workspace: Workspace, params: Params) -> LabelProvider:
    """Create the label provider that ``provider.kind`` in params.yaml names, without calling it.

    Raises:
        UserError: the user's own class cannot be imported or is no label provider, or the extra ``cvat`` is missing.
    """
    if is_class_path(params.provider.kind):
        return load_extension("provider.kind", params.provider.kind, LabelProvider, workspace.root, workspace, params)  # type: ignore[type-abstract]
    # Each kind imports only its own libraries, and importing the protocol imports none of them.
    if params.provider.kind == "folder":
        from flows.annotation.providers.folder import FolderProvider

        return FolderProvider(params.provider, params.classes, workspace.root)
    if params.provider.kind == "label_studio":
        from flows.annotation.providers.label_studio import LabelStudioProvider

        return LabelStudioProvider(workspace, params.classes, params.provider)
    if params.provider.kind == "cvat":
        if importlib.util.find_spec("cvat_sdk") is None:
            raise UserError(
                "provider.kind cvat", "the package cvat-sdk is not installed", "Run: pip install 'gleaner[cvat]'"
            )
        from flows.annotation.providers.cvat import CvatProvider

        return CvatProvider(workspace, params.classes, params.provider)
    from flows.annotation.providers.oracle import OracleProvider

    return OracleProvider(workspace.oracle, params.classes, params.annotator_model, params.seed)
