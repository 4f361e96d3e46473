"""Read what a selection rests on: the candidates with all that is known of them, and what each would cost."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import CANDIDATE_SCORES, SCORES, UNCERTAINTY, UNLABELED
from tasks.params.stages import BudgetParams
from tasks.runtime.errors import UserError
from tasks.selection import budget as budgets
from tasks.selection.annotation_cost import AnnotationCost, fit_annotation_cost
from tasks.selection.earlier_picks import EarlierPick, read_earlier_picks
from tasks.selection.pool_view import PoolView
from tasks.storage import files

ReadPicks = Callable[[AnnotationCost], Sequence[EarlierPick]]
"""Reads the answered picks of all batches; costs are for answers without a measured time."""


def input_paths(workspace: Workspace) -> dict[str, Path]:
    """Return what ``read_inputs`` reads of a campaign, by the names of its arguments."""
    assembled = workspace.derived("assemble")
    return {
        "labels": workspace.labels,
        "unlabeled": assembled / "unlabeled.parquet",
        "labeled": assembled / "labeled.parquet",
        "leased": assembled / "leased.json",
        "infer": workspace.derived("infer"),
        "scores": workspace.derived("score") / "scores.parquet",
        "box_errors": workspace.derived("score") / "box_errors.json",
        "uncertainty": workspace.derived("weigh") / "uncertainty.parquet",
    }


def earlier_picks_of(workspace: Workspace, classes: Sequence[str], focal_gamma: float) -> ReadPicks:
    """Return what reads the answered picks of a campaign."""
    return partial(read_earlier_picks, workspace.labels, workspace.detections_at_selection, classes, focal_gamma)


@dataclass(frozen=True)
class SelectionInputs:
    """What a strategy sees, and what the budget is compared with."""

    pool: PoolView
    cost_model: AnnotationCost
    cost: dict[str, float]
    """Of each candidate, in the budget's unit, by image id."""
    num_leased: int
    """Unlabeled images that are with the annotators, and no candidates."""
    value_model: dict[str, Any]
    """``used`` and ``reason``: whether the value of images is good enough to be used."""


def read_inputs(
    budget: BudgetParams,
    *,
    labels: Path,
    unlabeled: Path,
    leased: Path,
    labeled: Path,
    infer: Path,
    scores: Path,
    box_errors: Path,
    uncertainty: Path,
    earlier_picks: ReadPicks,
) -> SelectionInputs:
    """Read the tables; what only some strategies want is opened when they ask for it. Arguments are those of select.

    Raises:
        UserError: an input is malformed, or an unlabeled image was not scored.
    """
    leased_ids = set(files.read_json(leased))
    cost_model = _fit_cost_model(labels, budget)
    candidates = _candidates(unlabeled, leased_ids, scores, uncertainty, cost_model)
    value_model = files.read_json(box_errors)
    if not value_model["used"]:
        candidates["value"] = np.nan
    cost = budgets.costs(candidates, budget)
    pool = PoolView(
        candidates,
        infer,
        labeled=labeled,
        labels=labels,
        earlier_picks=partial(earlier_picks, cost_model),
        batch_size=budgets.expected_batch_size(cost, budget.amount),
    )
    return SelectionInputs(pool, cost_model, cost, len(leased_ids), value_model)


def _fit_cost_model(labels: Path, budget: BudgetParams) -> AnnotationCost:
    """Estimate minutes per image and per box from all answers so far."""
    all_annotations = read_labels(labels).all_annotations
    return fit_annotation_cost((label for answers in all_annotations.values() for label in answers), budget)


def _candidates(
    unlabeled: Path, leased: Set[str], scores: Path, uncertainty: Path, cost_model: AnnotationCost
) -> pd.DataFrame:
    """Join what is known about each candidate, indexed and sorted by image_id."""
    listed: pd.Series = files.read_table(unlabeled, UNLABELED, columns=["image_id"])["image_id"].to_pandas()
    ids = pd.Index(listed[~listed.isin(leased)], name="image_id").sort_values()
    known = _by_image(scores, SCORES, CANDIDATE_SCORES).join(
        _by_image(uncertainty, UNCERTAINTY, UNCERTAINTY.names), how="inner"
    )
    missing = ids.difference(known.index)
    if len(missing):
        raise UserError(
            scores.parent,
            f"unlabeled images without a score is {len(missing)} (first: {missing[0]}), expected 0",
            "Run: dvc repro select",
        )
    minutes = budgets.expected_minutes(known["expected_boxes"], cost_model)
    candidates: pd.DataFrame = known.assign(expected_minutes=minutes).loc[ids]
    return candidates


def _by_image(path: Path, schema: pa.Schema, columns: Sequence[str]) -> pd.DataFrame:
    table: pd.DataFrame = files.read_table(path, schema, columns=columns).to_pandas()
    return table.set_index("image_id")
