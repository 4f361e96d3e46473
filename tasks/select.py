"""Select the next batch under the budget, each image with the reason for it (docs/method.md#selection).

Reads  data/labels, data/detections_at_selection, derived/assemble/labeled.parquet, derived/assemble/leased.json,
       derived/assemble/unlabeled.parquet, derived/infer, derived/score, derived/weigh
Writes derived/select
Params seed, classes, select, budget, dwa.focal_gamma
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from tasks.data.label_store import LabelStore, read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, SELECTION
from tasks.evaluation.label_check import doubtful_labels
from tasks.params import load_stage_params
from tasks.params.stages import BudgetParams, SelectParams
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import stage_main
from tasks.selection import budget as budgets
from tasks.selection.image_ids import text_ids
from tasks.selection.inputs import ReadPicks, SelectionInputs, earlier_picks_of, input_paths, read_inputs
from tasks.selection.open_tasks import random_picks, rank_open_tasks, read_open_pool
from tasks.selection.relabel import RelabelPicks, pick_relabels
from tasks.selection.strategies.base import Strategy, seeded_shuffle
from tasks.selection.strategies.objective import ObjectiveStrategy
from tasks.selection.strategies.portfolio import Portfolio
from tasks.selection.strategies.registry import create_strategy
from tasks.selection.strategy_record import strategy_records
from tasks.storage import files

_log = logging.getLogger(__name__)


def select(
    params: SelectParams,
    budget: BudgetParams,
    seed: int,
    *,
    labels: Path,
    unlabeled: Path,
    leased: Path,
    labeled: Path,
    infer: Path,
    scores: Path,
    box_errors: Path,
    uncertainty: Path,
    detections_at_selection: Path,
    out: Path,
    earlier_picks: ReadPicks = lambda _: (),
    extensions: Path = Path(),
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Select the images to label next, and return the summary.

    Args:
        params: strategy and exploration share.
        budget: what one batch may cost.
        seed: of the uniform draws.
        labels: folder of label batches, whose measured times give the cost of an image.
        unlabeled: images without labels (schemas.UNLABELED).
        leased: ids of those among them that are with the annotators already, and cannot be picked again.
        labeled: labeled images with their boxes (schemas.ANNOTATED); opened where the strategy asks for them.
        infer: folder of detection shards (schemas.DETECTIONS); opened where the strategy asks for embeddings.
        scores: metrics and expected boxes (schemas.SCORES).
        box_errors: what ``score`` says of the value of images; where it is not used, no strategy sees it.
        uncertainty: uncertainties (schemas.UNCERTAINTY).
        detections_at_selection: folder that says which of the leased images were drawn uniformly.
        out: folder for ``selection.parquet`` (schemas.SELECTION, by rank), ``summary.json``, and
            ``open_ranking.parquet``, the leased images in their new order (schemas.SELECTION, by rank), and
            ``relabel.parquet``, labels to be checked (schemas.RELABEL, by rank behind those of the selection).
        earlier_picks: reads what the picks of earlier batches turned out to be worth.
        extensions: folder in which the module of an own strategy is found.
        classes: class names in the order of their indices; read where labels are checked.

    Raises:
        UserError: an input is malformed, an unlabeled image was not scored, or an own strategy does not rank each
            candidate once.
    """
    inputs = read_inputs(
        budget,
        labels=labels,
        unlabeled=unlabeled,
        leased=leased,
        labeled=labeled,
        infer=infer,
        scores=scores,
        box_errors=box_errors,
        uncertainty=uncertainty,
        earlier_picks=earlier_picks,
    )
    pool, candidates = inputs.pool, inputs.pool.candidates
    strategy = create_strategy(params, extensions)
    ranking = strategy.rank(pool, seed=seed)
    _check_ranking(ranking, candidates, params.strategy)
    shuffled = seeded_shuffle(text_ids(candidates.index), seed=seed, purpose="explore")
    store = read_labels(labels)
    relabels = _pick_relabels(budget, inputs, store, labeled, infer, detections_at_selection, classes)
    amount = budget.amount - relabels.spent
    batch = budgets.fill_budget(ranking, shuffled, inputs.cost, amount=amount, random_frac=params.random_frac)
    selection = _selection_rows(candidates, batch, strategy, ranking)
    selection["picked_by"] = _picked_by(batch, strategy, params.strategy)
    summary = _summary(selection, batch, candidates=len(candidates), params=params, budget=budget)
    summary |= {"leased": inputs.num_leased, "annotation_cost": asdict(inputs.cost_model)}
    summary |= {"value": {key: inputs.value_model[key] for key in ("used", "reason")}}
    minutes = round(sum(relabels.minutes.values()), 3)
    summary["relabel"] = {"images": len(relabels.labels), "expected_minutes": minutes}
    summary["bought"] = strategy_records(inputs.pool.earlier_picks)
    if isinstance(strategy, Portfolio):
        summary["portfolio"] = strategy.shares
    if isinstance(strategy, ObjectiveStrategy):
        summary["objectives"] = strategy.shares(batch.selected)
        summary["near_duplicates"] = strategy.num_duplicates
    rows = selection[SELECTION.names].to_dict("records")
    files.write_table(out / "selection.parquet", pa.Table.from_pylist(rows, schema=SELECTION))
    files.write_table(out / "relabel.parquet", relabels.as_table(first_rank=len(selection) + 1))
    open_pool = read_open_pool(inputs, leased, scores, uncertainty)
    drawn = random_picks(store.leased, detections_at_selection)
    files.write_table(out / "open_ranking.parquet", rank_open_tasks(open_pool, strategy, drawn, seed=seed))
    files.write_json(out / "summary.json", summary)
    _log_summary(summary)
    return summary


def _pick_relabels(
    budget: BudgetParams,
    inputs: SelectionInputs,
    store: LabelStore,
    labeled: Path,
    infer: Path,
    detections_at_selection: Path,
    classes: Sequence[str],
) -> RelabelPicks:
    """Pick labels to be checked; none with an exhausted pool, where a campaign ends."""
    if not budget.relabel_frac or not len(inputs.pool.candidates):
        return RelabelPicks((), {}, 0.0)
    rows = files.read_table(labeled, ANNOTATED).to_pylist()
    crowded = {row["image_id"] for row in rows if any(row["is_crowd"] or ())}
    left_out = {*store.checks, *store.leased, *crowded}
    num_boxes = {row["image_id"]: len(row["class_ids"]) for row in rows}
    doubtful = doubtful_labels(labeled, infer, detections_at_selection, classes, left_out)
    return pick_relabels(doubtful, num_boxes, left_out, inputs.cost_model, budget)


def _check_ranking(ranking: Sequence[str], candidates: pd.DataFrame, strategy: str) -> None:
    """Refuse a ranking that leaves out or repeats an image: the batch would not be what the budget allows."""
    different = set(ranking)
    is_complete = len(ranking) == len(different) == len(candidates)
    if not is_complete or not all(image in different for image in text_ids(candidates.index)):
        raise UserError(
            "params.yaml",
            f"select.strategy is {strategy!r} and ranks {len(ranking)} ids, {len(different)} of them different, "
            f"expected each of the {len(candidates)} candidates once",
            "Correct its method rank.",
        )


def _selection_rows(
    candidates: pd.DataFrame, batch: budgets.Batch, strategy: Strategy, ranking: list[str]
) -> pd.DataFrame:
    """Return the rows of schemas.SELECTION, rank 1 first."""
    found = candidates[candidates.index.isin(batch.selected)]  # .loc would build an index of the whole pool
    selected = found.loc[list(batch.selected)].reset_index()
    selected["rank"] = range(1, len(selected) + 1)
    selected["is_random_pick"] = [image in batch.random_picks for image in batch.selected]
    selected["num_candidates"] = len(ranking)
    wanted = set(batch.selected)
    positions = {image: place for place, image in enumerate(ranking, start=1) if image in wanted}
    selected["reason"] = [
        _reason(
            row,
            strategy,
            is_random_pick=bool(row.is_random_pick),
            position=positions[str(row.image_id)],
            num_candidates=len(ranking),
        )
        for _, row in selected.iterrows()
    ]
    return selected


def _picked_by(batch: budgets.Batch, strategy: Strategy, name: str) -> list[str]:
    """Return the strategy of each image of the batch; the uniform draw is ``random``."""
    return [
        "random"
        if image in batch.random_picks
        else strategy.picked_by(image)
        if isinstance(strategy, Portfolio)
        else name
        for image in batch.selected
    ]


def _reason(
    candidate: pd.Series, strategy: Strategy, *, is_random_pick: bool, position: int, num_candidates: int
) -> str:
    strategy_reason = strategy.reason(candidate, position=position, num_candidates=num_candidates)
    text = f"random pick; {strategy_reason}" if is_random_pick else strategy_reason
    return f"{text}; no detections: the teacher saw nothing here" if candidate.has_no_detections else text


def _summary(
    selection: pd.DataFrame,
    batch: budgets.Batch,
    *,
    candidates: int,
    params: SelectParams,
    budget: BudgetParams,
) -> dict[str, Any]:
    return {
        "selected": len(selection),
        "random_picks": len(batch.random_picks),
        "budget_unit": budget.unit,
        "budget_amount": budget.amount,
        "expected_boxes": round(float(selection["expected_boxes"].sum()), 3),
        "expected_minutes": round(float(selection["expected_minutes"].sum()), 3),
        "strategy": params.strategy,
        "candidates": candidates,
        "pool_exhausted": len(selection) == candidates,
    }


def _log_summary(summary: dict[str, Any]) -> None:
    if summary["leased"]:
        _log.info("%d unlabeled images are with the annotators", summary["leased"])
    if not summary["candidates"]:
        _log.info("no other unlabeled image is left: nothing to select")
        return
    _log.info(
        "picked %d of %d unlabeled images, %d of them by uniform draw: about %.0f boxes, %.0f minutes",
        *(summary[key] for key in ("selected", "candidates", "random_picks", "expected_boxes", "expected_minutes")),
    )
    if summary["relabel"]["images"]:
        _log.info("%(images)d labels to be checked: about %(expected_minutes).0f minutes", summary["relabel"])
    cost = summary["annotation_cost"]
    minutes = cost["minutes_per_image"], cost["minutes_per_box"]
    _log.info("%.2g minutes per image and %.2g per box: %s", *minutes, cost["reason"])
    if summary["pool_exhausted"]:
        _log.info("that is all that is left: the pool is not larger than the budget")


def _body(workspace: Workspace) -> None:
    params = load_stage_params(workspace.params, "seed", "classes", "select", "budget", "dwa")
    select(
        params.select,
        params.budget,
        params.seed,
        **input_paths(workspace),
        detections_at_selection=workspace.detections_at_selection,
        out=workspace.derived("select"),
        earlier_picks=earlier_picks_of(workspace, params.classes, params.dwa.focal_gamma),
        extensions=workspace.root,
        classes=params.classes,
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("select", _body)


if __name__ == "__main__":
    main()
