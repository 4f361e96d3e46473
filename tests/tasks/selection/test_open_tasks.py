"""The order of open tasks: that of the strategy, with uniform draws where chance puts them."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.schemas import DETECTIONS_AT_SELECTION, SELECTION
from tasks.selection.open_tasks import order_open, random_picks, rank_open_tasks
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.objective import ObjectiveStrategy
from tasks.selection.strategies.uncertainty import Uncertainty
from tasks.storage import files

IDS = [f"{number:02d}" for number in range(40)]


@given(
    st.lists(st.sampled_from(IDS), unique=True).flatmap(
        lambda ids: st.tuples(st.permutations(ids), st.sets(st.sampled_from(ids)) if ids else st.just(set()))
    ),
    st.integers(0, 100),
)
def test_chosen_images_keep_the_order_of_the_strategy(order: tuple[list[str], set[str]], seed: int) -> None:
    ranking, drawn = order
    found = order_open(ranking, drawn, seed=seed)
    assert sorted(found) == sorted(ranking)
    assert [image for image in found if image not in drawn] == [image for image in ranking if image not in drawn]


def test_uniform_draws_are_spread_over_the_order_whatever_the_strategy_thinks_of_them() -> None:
    """The strategy puts all ten last; over many seeds their mean place is that of chance, 19.5 of 0 to 39."""
    drawn = set(IDS[-10:])
    places = [order_open(IDS, drawn, seed=seed).index(image) for seed in range(200) for image in drawn]
    assert abs(sum(places) / len(places) - 19.5) < 1.0  # standard error about 0.22


def test_open_tasks_are_rows_of_a_selection_with_their_reasons() -> None:
    candidates = pd.DataFrame(
        {
            "image_id": ["a", "b", "c"], "uncertainty": [0.2, 0.9, 0.5], "expected_boxes": 2.0, "expected_minutes": 1.0,
            **{name: 0.5 for name in ("entropy", "overlap", "confidence", "w_entropy", "w_overlap", "w_confidence")},
        }
    ).set_index("image_id")  # fmt: skip
    table = rank_open_tasks(PoolView(candidates), Uncertainty(), {"c"}, seed=3)
    assert table.schema.equals(SELECTION)
    rows = {row["image_id"]: row for row in table.to_pylist()}
    assert rows["b"]["rank"] < rows["a"]["rank"]
    assert rows["b"]["reason"].startswith("uncertainty 0.90 (rank 1 of 3)")
    assert rows["c"]["reason"].startswith("random pick; uncertainty 0.50 (rank 2 of 3)")
    assert [row["is_random_pick"] for row in rows.values()].count(True) == 1
    objective = ObjectiveStrategy("least", {"cheapness": 1.0})
    by_objective = rank_open_tasks(PoolView(candidates), objective, set(), seed=3).to_pylist()
    assert by_objective[0]["reason"].startswith("least (rank 1 of 3): cheapness")
    assert rank_open_tasks(PoolView(candidates.head(0)), Uncertainty(), set(), seed=3).num_rows == 0


def test_what_was_drawn_is_read_from_the_batches_of_the_open_images(tmp_path: Path) -> None:
    for batch, drawn in ((1, True), (2, False)):
        rows = [{"image_id": f"{batch}{name}", "is_random_pick": drawn and name == "x"} for name in "xy"]
        table = pa.Table.from_pylist(rows, schema=DETECTIONS_AT_SELECTION)
        files.write_table(tmp_path / f"batch-{batch:04d}.parquet", table)
    leased = {"1x": 1, "1y": 1, "2x": 2, "3x": 3}
    assert random_picks(leased, tmp_path) == {"1x"}
    assert random_picks({"1y": 1}, tmp_path) == set()
