"""What each objective gave to a batch."""

import pandas as pd
import pytest

from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.objective import ObjectiveStrategy


@pytest.fixture
def strategy() -> ObjectiveStrategy:
    """Three images: the first most uncertain and dearest, the last the other way round, one in the middle of both."""
    candidates = pd.DataFrame(
        {"image_id": ["a", "b", "c"], "uncertainty": [0.9, 0.5, 0.2], "expected_minutes": [3.0, 2.0, 1.0]}
    ).set_index("image_id")
    ranked = ObjectiveStrategy("composite", {"uncertainty": 3.0, "cheapness": 1.0})
    assert ranked.rank(PoolView(candidates), seed=0) == ["a", "b", "c"]
    return ranked


def test_an_image_gets_its_value_from_the_objective_it_is_best_in(strategy: ObjectiveStrategy) -> None:
    assert strategy.shares(["a"]) == {"uncertainty": pytest.approx(1.0), "cheapness": pytest.approx(0.0)}
    assert strategy.shares(["c"]) == {"uncertainty": pytest.approx(0.0), "cheapness": pytest.approx(1.0)}


def test_the_shares_of_the_whole_pool_are_the_weights(strategy: ObjectiveStrategy) -> None:
    assert strategy.shares(["a", "b", "c"]) == {"uncertainty": pytest.approx(0.75), "cheapness": pytest.approx(0.25)}
    assert strategy.shares([]) == {"uncertainty": 0.0, "cheapness": 0.0}
    assert strategy.num_duplicates == 0
