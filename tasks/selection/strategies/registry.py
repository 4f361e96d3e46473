"""Strategies by the name that stands in ``select.strategy`` of params.yaml."""

from collections.abc import Mapping
from pathlib import Path

from tasks.runtime.extensions import is_class_path, load_extension
from tasks.selection.strategies.base import Strategy
from tasks.selection.strategies.coreset import Coreset
from tasks.selection.strategies.entropy import Entropy
from tasks.selection.strategies.random import Random
from tasks.selection.strategies.uncertainty import Uncertainty

STRATEGIES: Mapping[str, Strategy] = {
    "uncertainty": Uncertainty(),
    "random": Random(),
    "entropy": Entropy(),
    "coreset": Coreset(),
}


def create_strategy(name: str, folder: Path) -> Strategy:
    """Return the strategy of a name, or an instance of the user's own class ``package.module:ClassName``.

    Args:
        name: ``select.strategy`` of params.yaml.
        folder: the campaign, whose modules are found too.

    Raises:
        UserError: the user's class cannot be imported or is no strategy.
    """
    if is_class_path(name):
        return load_extension("select.strategy", name, Strategy, folder)  # type: ignore[type-abstract]
    return STRATEGIES[name]
