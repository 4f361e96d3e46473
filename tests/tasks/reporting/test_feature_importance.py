"""What moves the weights, told: in words people use, and not where there is nothing to tell."""

from typing import Any

import pytest

from detectron_ext.image_features import feature_names
from tasks.reporting.feature_importance import ROWS_SHOWN, importance_rows, importance_text

SHIFT = {"confidence": 0.01, "entropy": -0.02, "overlap": 0.01}


def dwa(spread: float = 0.04, classes: tuple[str, ...] = ("a:b", "dog"), **change: Any) -> dict[str, Any]:
    features = [
        {"feature": name, "importance": 0.05 - 0.001 * i, "effect_per_std": SHIFT}
        for i, name in enumerate(reversed(feature_names(classes)))
    ]
    return {
        "feature_importance": {"std": spread, "features": features},
        "mean_weights": {"confidence": 0.2, "entropy": 0.5, "overlap": 0.3},
        "spearman_by_metric": {"confidence": 0.1, "entropy": 0.4, "overlap": None},
    } | change


def test_the_strongest_are_named_as_people_say_it() -> None:
    rows = importance_rows(dwa())
    assert len(rows) == ROWS_SHOWN
    assert [row.name for row in rows[:5]] == [
        "share of boxes “dog”",
        "share of boxes “a:b”",
        "mean posterior of “dog”",
        "mean posterior of “a:b”",
        "share of overlapping boxes",
    ]
    assert "What moves them most: share of boxes “dog”, share of boxes “a:b” and mean post" in importance_text(dwa())


def test_every_feature_has_words() -> None:
    document = dwa()
    for found in document["feature_importance"]["features"]:
        only = dwa(feature_importance={"std": 1.0, "features": [found]})
        assert "_" not in importance_rows(only)[0].name


@pytest.mark.parametrize(
    ("alone", "said"),
    [
        ({"confidence": 0.1, "entropy": 0.4, "overlap": None}, "leans to entropy, which ranks the mistakes best"),
        ({"confidence": 0.1, "entropy": 0.4, "overlap": 0.5}, "leans to entropy, though by itself overlap ranks"),
    ],
)
def test_what_the_mean_follows(alone: dict[str, float | None], said: str) -> None:
    assert said in importance_text(dwa(spearman_by_metric=alone))


def test_one_mixture_for_all_is_not_explained_by_features() -> None:
    assert importance_rows(dwa(spread=0.002)) == []
    assert "0.002 from their mean, on average: one mixture serves nearly all" in importance_text(dwa(spread=0.002))


def test_weights_that_cannot_differ_are_not_mentioned() -> None:
    assert importance_rows(dwa(feature_importance=None)) == []
    assert importance_text(dwa(feature_importance=None)) == ""
