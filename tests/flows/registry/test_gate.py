"""What the gate decides about a comparison; how it comes by one is in test_promotion.py."""

import numpy as np
import pytest

from flows.registry.gate import decide
from tasks.evaluation.paired_bootstrap import Comparison
from tasks.params.promotion import PromotionParams

BOUNDS = PromotionParams(
    bootstrap_samples=400, confidence_level=0.8, map_tolerance_points=1.0, class_tolerance_points=5.0
)
CLASSES = ("common", "rare")


def make_comparison(common: float, rare: float, spread: float = 1.0) -> Comparison:
    """Champion at 50 in both classes; the candidate differs by as much, in every sample by ``spread`` more or less."""
    random = np.random.default_rng(0)
    differences = np.array([common, rare]) + random.normal(0, spread, (BOUNDS.bootstrap_samples, 2))
    champion = np.array([50.0, 50.0])
    candidate = champion + np.array([common, rare])
    return Comparison(
        candidate.mean(), champion.mean(), candidate, champion, differences.mean(axis=1), differences
    )  # fmt: skip


@pytest.mark.parametrize(("common", "rare"), [(2.0, 2.0), (0.0, 0.0), (5.0, -4.0)])
def test_not_worse_passes(common: float, rare: float) -> None:
    verdict = decide(make_comparison(common, rare), CLASSES, BOUNDS)
    assert verdict.passed, verdict.reason
    assert verdict.metrics["regressed_classes"] == {}


def test_a_worse_mean_is_refused_with_its_figures() -> None:
    verdict = decide(make_comparison(-3.0, -3.0), CLASSES, BOUNDS)
    assert not verdict.passed
    assert "mAP 47.00 against the champion's 50.00" in verdict.reason
    assert verdict.metrics["not_worse_frac"] < 0.1
    low, high = verdict.metrics["difference_interval"]
    assert low < -3 < high < 0


def test_too_uncertain_a_mean_is_refused() -> None:
    verdict = decide(make_comparison(0.0, 0.0, spread=10.0), CLASSES, BOUNDS)
    assert not verdict.passed
    assert "expected at least 80%" in verdict.reason


def test_a_rare_class_is_not_sold_for_the_mean() -> None:
    verdict = decide(make_comparison(40.0, -30.0), CLASSES, BOUNDS)
    assert not verdict.passed
    assert "mAP 55.00 against the champion's 50.00, but AP fell for rare 50.0 to 20.0" in verdict.reason
    assert list(verdict.metrics["regressed_classes"]) == ["rare"]


def test_a_class_that_fell_by_the_luck_of_few_images_is_forgiven() -> None:
    verdict = decide(make_comparison(20.0, -6.0, spread=30.0), CLASSES, BOUNDS)
    assert verdict.metrics["regressed_classes"] == {}


def test_a_class_absent_from_the_validation_set_decides_nothing() -> None:
    found = make_comparison(2.0, 0.0)
    found.candidate_ap[1] = found.champion_ap[1] = np.nan
    found.ap_differences[:, 1] = np.nan
    verdict = decide(found, CLASSES, BOUNDS)
    assert verdict.passed
    assert verdict.metrics["class_changes"] == {"common": 2.0, "rare": None}
