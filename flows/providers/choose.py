"""From ``provider.kind`` in params.yaml to the provider itself."""

from flows.providers.base import LabelProvider
from flows.providers.simulated import SimulatedAnnotator
from tasks.params import Params
from tasks.paths import Workspace


def choose_provider(workspace: Workspace, params: Params) -> LabelProvider:
    """The label provider of a campaign."""
    return SimulatedAnnotator(workspace.oracle, params.classes, params.budget)
