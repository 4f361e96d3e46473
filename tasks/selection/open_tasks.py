"""Rank the images that are with the annotators already, by what the newest teacher says of them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.data.schemas import CANDIDATE_SCORES, SCORES, SELECTION, UNCERTAINTY
from tasks.selection.budget import expected_minutes
from tasks.selection.inputs import SelectionInputs
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import Strategy, seeded_shuffle
from tasks.storage import files


def read_open_pool(inputs: SelectionInputs, leased: Path, scores: Path, uncertainty: Path) -> PoolView:
    """Return the images that are with the annotators as a pool of their own; those that were not scored are left out.

    Args:
        inputs: of the selection, whose cost model, value model and further tables count here too.
        leased: their ids, a JSON list.
        scores: metrics and expected boxes, schemas.SCORES.
        uncertainty: schemas.UNCERTAINTY.
    """
    wanted = pa.array(sorted(files.read_json(leased)), pa.string())
    parts = [
        _rows_of(path, schema, columns, wanted).to_pandas().set_index("image_id")
        for path, schema, columns in (
            (scores, SCORES, CANDIDATE_SCORES),
            (uncertainty, UNCERTAINTY, UNCERTAINTY.names),
        )
    ]
    found: pd.DataFrame = parts[0].join(parts[1], how="inner").sort_index()
    found["expected_minutes"] = expected_minutes(found["expected_boxes"], inputs.cost_model)
    if not inputs.value_model["used"]:
        found["value"] = np.nan
    return inputs.pool.with_candidates(found, batch_size=max(len(found), 1))


def _rows_of(path: Path, schema: pa.Schema, columns: Sequence[str], image_ids: pa.Array) -> pa.Table:
    found = pa.schema([schema.field(name) for name in columns]).empty_table()
    if not len(image_ids):
        return found
    groups = files.row_groups(path, schema, columns=columns)
    return pa.concat_tables(
        [found, *(group.filter(pc.is_in(group["image_id"], value_set=image_ids)) for group in groups)]
    )


def rank_open_tasks(pool: PoolView, strategy: Strategy, drawn: Collection[str], *, seed: int) -> pa.Table:
    """Rank open images by the campaign's strategy among themselves; rows of schemas.SELECTION, rank 1 first.

    Args:
        pool: the open images as candidates.
        strategy: that of ``select.strategy``.
        drawn: images that were drawn uniformly when they were offered.
        seed: ``seed`` of params.yaml.
    """
    ranking = strategy.rank(pool, seed=seed) if len(pool.candidates) else []
    known = {str(row["image_id"]): row for _, row in pool.candidates.reset_index().iterrows()}
    rows: list[dict[str, Any]] = []
    for rank, image in enumerate(order_open(ranking, drawn, seed=seed), start=1):
        found, place = known[image], ranking.index(image) + 1
        reason = strategy.reason(found, position=place, num_candidates=len(ranking))
        rows.append(
            {
                "image_id": image,
                "rank": rank,
                "is_random_pick": image in drawn,
                "num_candidates": len(ranking),
                "reason": f"random pick; {reason}" if image in drawn else reason,
            }
            | {name: float(found[name]) for name in ("uncertainty", "expected_boxes", "expected_minutes")}
        )
    return pa.Table.from_pylist(rows, schema=SELECTION)


def order_open(ranking: Sequence[str], drawn: Collection[str], *, seed: int) -> list[str]:
    """Put the open images in their new order (docs/method.md#open-tasks).

    Uniform draws keep places that chance gives them: behind all chosen images they would be left unlabeled more often
    than others, and what is estimated from them would be biased.

    Args:
        ranking: all open images in the order of the strategy.
        drawn: those that were drawn uniformly.
        seed: ``seed`` of params.yaml.
    """
    places = seeded_shuffle(ranking, seed=seed, purpose="open")
    chosen = iter([image for image in ranking if image not in drawn])
    return [image if image in drawn else next(chosen) for image in places]


def random_picks(leased: Mapping[str, int], detections_at_selection: Path) -> set[str]:
    """Return which of the images were drawn uniformly when they were offered.

    Args:
        leased: batch in which each image was offered.
        detections_at_selection: folder with a table per batch, schemas.DETECTIONS_AT_SELECTION.
    """
    found: set[str] = set()
    for batch in sorted(set(leased.values())):
        path = detections_at_selection / f"batch-{batch:04d}.parquet"
        if path.is_file():
            table = pq.read_table(path, columns=["image_id", "is_random_pick"])
            found |= set(table.filter(table["is_random_pick"])["image_id"].to_pylist())
    return found & leased.keys()
