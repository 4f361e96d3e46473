"""Strategies by the name that stands in ``select.strategy`` of params.yaml."""

from collections.abc import Mapping

from tasks.strategies.base import Strategy
from tasks.strategies.entropy import Entropy
from tasks.strategies.uncertainty import Uncertainty
from tasks.strategies.uniform import Random

STRATEGIES: Mapping[str, Strategy] = {"uncertainty": Uncertainty(), "random": Random(), "entropy": Entropy()}
