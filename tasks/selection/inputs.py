"""Read what a selection rests on: the candidates with all that is known of them, and what each would cost."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

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
from tasks.storage.mapped_arrays import mapped_arrays

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
    cost: Mapping[str, float]
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
    """Join what is known about each candidate, indexed and sorted by image_id.

    Columns are read one by one, and stay on disk until a strategy looks at them.
    """
    listed = files.read_table(unlabeled, UNLABELED, columns=["image_id"])["image_id"].to_pylist()
    ids = sorted(image for image in listed if image not in leased)
    tables = [(scores, SCORES, CANDIDATE_SCORES), (uncertainty, UNCERTAINTY, UNCERTAINTY.names)]
    rows = [_rows_of(ids, path, schema) for path, schema, _ in tables]
    missing_P = np.any([of_table < 0 for of_table in rows], axis=0)
    if missing_P.any():
        first = ids[int(missing_P.argmax())]
        raise UserError(
            scores.parent,
            f"unlabeled images without a score is {missing_P.sum()} (first: {first}), expected 0",
            "Run: dvc repro select",
        )
    names = [name for _, _, columns in tables for name in columns if name != "image_id"]
    arrays = mapped_arrays(
        files.read_table(path, schema, columns=[name])[name].to_numpy()[of_table]
        for (path, schema, columns), of_table in zip(tables, rows, strict=True)
        for name in columns
        if name != "image_id"
    )
    index = pd.Index(ids, dtype=object, name="image_id")
    candidates = pd.DataFrame(dict(zip(names, arrays, strict=True)), index=index, copy=False)
    candidates["expected_minutes"] = budgets.expected_minutes(candidates["expected_boxes"], cost_model)
    return candidates


def _rows_of(image_ids: Sequence[str], path: Path, schema: pa.Schema) -> NDArray[np.int32]:
    """Return the row of each image in a table, (P,); -1: it has none."""
    known = files.read_table(path, schema, columns=["image_id"])["image_id"]
    found = pc.index_in(pa.array(image_ids, pa.string()), value_set=known)
    return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False))
