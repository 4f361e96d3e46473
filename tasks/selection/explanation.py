"""Say why an image is, or is not, in the batch that the stage ``select`` wrote."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from detectron_ext.uncertainty_metrics import normalize
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import ALL_METRICS, SELECTION
from tasks.params import Params, load_params
from tasks.runtime.errors import UserError
from tasks.selection.embeddings import Embeddings
from tasks.selection.inputs import SelectionInputs, earlier_picks_of, input_paths, read_inputs
from tasks.selection.objectives.registry import DIVERSITY, OBJECTIVES
from tasks.selection.pool_view import PoolView
from tasks.selection.strategies.base import Strategy
from tasks.selection.strategies.objective import ObjectiveStrategy
from tasks.selection.strategies.portfolio import Portfolio
from tasks.selection.strategies.registry import create_strategy
from tasks.storage import files

Document = dict[str, Any]
_ONLY_WHEN_WEIGHED = ("boundary", "committee", "objectness_entropy")  # costly, or measured only when asked for
_NUMBERS = ("uncertainty", "value", "expected_boxes", "expected_misses", "expected_minutes", "num_boxes")


def read_selection(workspace: Workspace) -> list[Document]:
    """Return the rows of the batch, schemas.SELECTION, by rank.

    Raises:
        UserError: the stage ``select`` has not run.
    """
    path = workspace.derived("select") / "selection.parquet"
    return sorted(files.read_table(path, SELECTION).to_pylist(), key=lambda row: row["rank"])


def explain(workspace: Workspace, image_id: str) -> Document:
    """Return what is known of an image, where it stands and why; changes nothing.

    The order is computed again, from the tables that the stages before ``select`` wrote and today's ``params.yaml``.

    Args:
        workspace: the campaign.
        image_id: id of an image, or its beginning.

    Raises:
        UserError: the id is unknown or of several images, or a table is missing.
    """
    params = load_params(workspace.params)
    inputs = read_workspace(workspace, params)
    state, image = _resolve(workspace, inputs.pool, image_id)
    if state != "candidate":
        return {"image_id": image, "state": state}
    pool = inputs.pool
    strategy = create_strategy(params.select, workspace.root)
    ranking = strategy.rank(pool, seed=params.seed)
    candidate = pool.candidates.loc[[image]].reset_index().iloc[0]
    position = ranking.index(image) + 1
    batch = read_selection(workspace)
    own = next((row for row in batch if row["image_id"] == image), None)
    return {
        "image_id": image,
        "state": state,
        "metrics": _metrics(candidate),
        **{name: _number(candidate[name]) for name in _NUMBERS},
        "strategy": params.select.strategy,
        "rank": position,
        "num_candidates": len(ranking),
        "objectives": _objectives(pool, image, params.seed, _weights(strategy, image)),
        "selected": own and {name: own[name] for name in ("rank", "is_random_pick", "picked_by")},
        "batch_size": len(batch),
        **_nearest(pool, image, [row["image_id"] for row in batch if row["image_id"] != image]),
        "reason": strategy.reason(candidate, position=position, num_candidates=len(ranking)),
    }


def read_workspace(workspace: Workspace, params: Params) -> SelectionInputs:
    """Read what the stage ``select`` reads.

    Raises:
        UserError: a table is missing.
    """
    read_picks = earlier_picks_of(workspace, params.classes, params.dwa.focal_gamma)
    return read_inputs(params.budget, **input_paths(workspace), earlier_picks=read_picks)


def _resolve(workspace: Workspace, pool: PoolView, beginning: str) -> tuple[str, str]:
    """Return state and id of the one image whose id begins so."""
    states: dict[str, str] = {}
    for image, answer in read_labels(workspace.labels).current.items():
        states[image] = f"{answer.label.status} in batch {answer.batch}"
    leased = files.read_json(workspace.derived("assemble") / "leased.json")
    states |= dict.fromkeys(leased, "with the annotators") | dict.fromkeys(pool.image_ids, "candidate")
    image = resolve_image_id(states, beginning, "--explain")
    return states[image], image


def resolve_image_id(known: Collection[str], beginning: str, option: str, otherwise: str = "") -> str:
    """Return the one image whose id begins so.

    Args:
        known: ids of the images that may be meant.
        beginning: of an id, or a whole one.
        option: that it was given for, for the message.
        otherwise: what else the option takes, for the message.

    Raises:
        UserError: the id is unknown or of several images.
    """
    found = [beginning] if beginning in known else [image for image in known if image.startswith(beginning)]
    if len(found) != 1:
        problem = f"images whose id begins with {beginning!r} are {len(found)}, expected 1{otherwise}"
        raise UserError(option, problem, "gleaner select lists the batch; labeled images are in data/labels.")
    return found[0]


def _metrics(candidate: pd.Series) -> dict[str, Document]:
    return {
        name: {
            "raw": _number(candidate[f"{name}_raw"]),
            "normalized": _number(candidate[name]),
            "weight": _number(candidate[f"w_{name}"]),
        }
        for name in ALL_METRICS
        if not pd.isna(candidate[f"{name}_raw"])
    }


def _weights(strategy: Strategy, image: str) -> Mapping[str, float]:
    """Weights of the objectives of the strategy, or of the one of the portfolio that the image was taken from."""
    if isinstance(strategy, Portfolio):
        return _weights(strategy.arms[strategy.picked_by(image)], image)
    return strategy.weights if isinstance(strategy, ObjectiveStrategy) else {}


def _objectives(pool: PoolView, image: str, seed: int, weights: Mapping[str, float]) -> list[Document]:
    """Value of each objective and the share of candidates that have less; those with a weight first."""
    [row] = pool.image_ids.get_indexer(pd.Index([image]))
    rows: list[Document] = []
    for name in sorted(OBJECTIVES, key=lambda name: -weights.get(name, 0.0)):
        if name not in weights and name in _ONLY_WHEN_WEIGHED:
            continue
        values = OBJECTIVES[name].values(pool, seed=seed)
        share = _number(normalize(values, "quantile")[row])
        rows.append({"name": name, "value": _number(values[row]), "share": share, "weight": weights.get(name, 0.0)})
    if DIVERSITY in weights:
        rows.append({"name": DIVERSITY, "value": None, "share": None, "weight": weights[DIVERSITY]})
    return rows


def _nearest(pool: PoolView, image: str, selected: Sequence[str]) -> Document:
    """Return the picked and the labeled image whose content is nearest, by cosine distance."""
    candidates, labeled = pool.content
    row, *rows = pool.image_ids.get_indexer(pd.Index([image, *selected]))
    picked = [(name, index) for name, index in zip(selected, rows, strict=True) if index >= 0]
    labeled_ids = pool.labeled_image_ids if len(pool.labeled_image_ids) == len(labeled) else []
    return {
        "nearest_selected": _closest(
            candidates[row], candidates[[index for _, index in picked]], [name for name, _ in picked]
        ),
        "nearest_labeled": _closest(candidates[row], labeled, labeled_ids),
    }


def _closest(vector: Embeddings, others: Embeddings, ids: Sequence[str]) -> Document | None:
    if not ids or not vector.any():
        return None
    distance = 1 - others @ vector
    best = int(distance.argmin())
    return {"image_id": ids[best], "distance": round(float(distance[best]), 4)}


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else round(float(np.float64(value)), 6)
