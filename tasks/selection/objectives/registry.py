"""Objectives by the name that stands in ``select.objectives``, and ready strategies made of them."""

from collections.abc import Mapping

from tasks.selection.objectives.base import Objective
from tasks.selection.objectives.boundary import Boundary
from tasks.selection.objectives.boxes import LeastConfident, Localization, Margin
from tasks.selection.objectives.columns import Column
from tasks.selection.objectives.committee import Committee
from tasks.selection.objectives.failures import Failures
from tasks.selection.objectives.novelty import Novelty
from tasks.selection.objectives.rarity import Rarity

DIVERSITY = "diversity"
"""Handled by the order itself, since it depends on what was taken before (``tasks/selection/diversity.py``)."""

OBJECTIVES: Mapping[str, Objective] = {
    "uncertainty": Column("uncertainty"),
    "confidence": Column("confidence_raw"),
    "entropy": Column("entropy_raw"),
    "overlap": Column("overlap_raw"),
    "cheapness": Column("expected_minutes", sign=-1),
    "least_confident": LeastConfident(),
    "margin": Margin(),
    "localization": Localization(),
    "committee": Committee(),
    "objectness_entropy": Column("objectness_entropy_raw"),
    "rarity": Rarity(),
    "novelty": Novelty(),
    "boundary": Boundary(),
    "failures": Failures(),
}

READY_STRATEGIES: Mapping[str, Mapping[str, float]] = {
    "least_confident": {"least_confident": 1},
    "margin": {"margin": 1},
    "localization": {"localization": 1},
    "committee": {"committee": 1},
    "objectness_entropy": {"objectness_entropy": 1},
    "rarity": {"rarity": 1},
    "novelty": {"novelty": 1},
    "boundary": {"boundary": 1},
    "failures": {"failures": 1},
}
"""Strategies that need no ``select.objectives``; ``composite`` takes them from there."""
