"""List the strategies by their name in ``select.strategy`` of params.yaml."""

from collections.abc import Mapping

from tasks.selection.strategies.base import Strategy
from tasks.selection.strategies.entropy import Entropy
from tasks.selection.strategies.random import Random
from tasks.selection.strategies.uncertainty import Uncertainty

STRATEGIES: Mapping[str, Strategy] = {"uncertainty": Uncertainty(), "random": Random(), "entropy": Entropy()}
