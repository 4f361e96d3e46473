"""Strategies by the name that stands in ``select.strategy`` of params.yaml."""

from collections.abc import Mapping
from pathlib import Path

from tasks.params.stages import SelectParams
from tasks.runtime.extensions import is_class_path, load_extension
from tasks.selection.objectives.registry import READY_STRATEGIES
from tasks.selection.strategies.base import Strategy
from tasks.selection.strategies.coreset import Coreset
from tasks.selection.strategies.entropy import Entropy
from tasks.selection.strategies.objective import ObjectiveStrategy
from tasks.selection.strategies.portfolio import Portfolio
from tasks.selection.strategies.random import Random
from tasks.selection.strategies.uncertainty import Uncertainty
from tasks.selection.strategies.value_per_minute import ValuePerMinute

STRATEGIES: Mapping[str, Strategy] = {
    "uncertainty": Uncertainty(),
    "random": Random(),
    "entropy": Entropy(),
    "coreset": Coreset(),
    "value_per_minute": ValuePerMinute(),
}


def create_strategy(params: SelectParams, folder: Path) -> Strategy:
    """Return the strategy of a name, or an instance of the user's own class ``package.module:ClassName``.

    Args:
        params: section ``select`` of params.yaml.
        folder: the campaign, whose modules are found too.

    Raises:
        UserError: the user's class cannot be imported or is no strategy.
    """
    if params.strategy == "portfolio":
        return Portfolio({name: _create(name, params, folder) for name in params.portfolio})
    return _create(params.strategy, params, folder)


def _create(name: str, params: SelectParams, folder: Path) -> Strategy:
    if name == "composite":
        return ObjectiveStrategy(name, {str(objective): weight for objective, weight in params.objectives.items()})
    if name in READY_STRATEGIES:
        return ObjectiveStrategy(name, READY_STRATEGIES[name])
    if is_class_path(name):
        return load_extension("select.strategy", name, Strategy, folder)  # type: ignore[type-abstract]
    return STRATEGIES[name]
