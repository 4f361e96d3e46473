"""Train the DWA network on the labels of earlier batches, and compute the uncertainty of every unlabeled image.

Reads  data/labels, data/detections_at_selection, derived/assemble/calibration.parquet, derived/infer, derived/score
Writes derived/weigh
Params seed, classes, scoring, dwa
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectron_ext.class_weights import ClassWeights, class_difficulty, class_weights, unit_class_weights
from detectron_ext.dwa import DwaConfig, DwaSamples, FeatureRows, metric_weights, mixture_terms
from detectron_ext.feature_importance import feature_importance
from detectron_ext.image_features import feature_names
from detectron_ext.ranking import rank_correlations
from detectron_ext.uncertainty_metrics import Floats, uncertainty
from detectron_ext.weight_choice import EQUAL, LEARNED, WeightChoice, choose_weights, evaluated_samples
from tasks.data import schemas
from tasks.data.detection_outcomes import calibration_outcomes
from tasks.data.dwa_samples import DwaSample, all_samples
from tasks.data.paths import Workspace
from tasks.params import StageParams, load_stage_params
from tasks.params.stages import DwaParams
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

log = logging.getLogger(__name__)
_ACTIVE_TEACHER = ("confidence_raw", "entropy_raw", "num_distinct_classes")
_WeightsOf = Callable[[slice], Floats]
"""Gives the weights of the terms, (B, T), for a slice of the pool."""


class StoredColumns:
    """Columns of a scores.parquet as rows of one array, of which one row group is in memory: P images take no more."""

    def __init__(self, scores: Path, names: Sequence[str]) -> None:
        """Read how many images there are.

        Args:
            scores: schemas.SCORES.
            names: columns of numbers, or of lists that are equally long in all rows.
        """
        self._scores, self._names = scores, list(names)
        self._sizes = files.row_group_sizes(scores, schemas.SCORES)
        self._number = -1
        self._held: list[NDArray[Any]] = []

    def __len__(self) -> int:
        return sum(self._sizes)

    def __getitem__(self, rows: slice) -> Floats:
        wanted, first, parts = np.arange(*rows.indices(len(self))), 0, []
        for number, size in enumerate(self._sizes):
            inside = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, first + size)] - first
            if len(inside) or not len(wanted):  # an empty result has columns too
                parts.append(np.column_stack([values[inside] for values in self._read(number)]))
            first += size
        return np.asarray(np.concatenate(parts), dtype=np.float64)

    def _read(self, number: int) -> list[NDArray[Any]]:
        if self._number != number:
            self._held = []  # before the next is read
            group = files.read_row_group(self._scores, schemas.SCORES, number, columns=self._names)
            self._number, self._held = number, [_numbers(column) for column in group.itercolumns()]
        return self._held


@dataclass(frozen=True)
class PoolFeatures:
    """The network's inputs for the unlabeled pool, P images; M is the number of ``schemas.ALL_METRICS``.

    Each is an array, or gives one for a slice of the images.
    """

    features: FeatureRows  # (P, F)
    metrics: FeatureRows  # (P, M) normalized
    active_teacher: FeatureRows  # (P, 3) raw confidence, raw entropy, distinct classes

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self) -> Iterator[slice]:
        """Yield slices of the images that fit in memory."""
        for start in range(0, len(self), files.ROW_GROUP_ROWS):
            yield slice(start, min(start + files.ROW_GROUP_ROWS, len(self)))


@dataclass(frozen=True)
class DwaDecision:
    """Metric weights of the pool's images, and the reason for the chosen rule."""

    used: str
    reason: str
    weights: Floats  # (P, M)
    uncertainty: Floats  # (P,)
    choice: WeightChoice | None = None


def weigh(params: StageParams, *, samples: list[DwaSample], scores: Path, out: Path) -> None:
    """Write uncertainty.parquet, class_weights.json, dwa_samples.parquet and dwa.json.

    Where a rule was learned, whether it was chosen or not, learned_uncertainty.parquet holds the uncertainty by it, so
    that studies can compare it with what was chosen.

    Args:
        params: sections seed, classes, scoring, dwa.
        samples: images a teacher had not been trained on, with what people found there.
        scores: scores.parquet of the pool.
        out: output folder.
    """
    classes, dwa = list(params.classes), params.dwa
    if dwa.allow_negative_weights and params.scoring.normalize == "none":
        problem = "allow_negative_weights is true with scoring.normalize none, expected metrics on [0, 1]"
        raise UserError("params.yaml: dwa", problem, "Choose another scoring.normalize.")
    pool = _pool_features(scores)
    losses = [pair.losses for pair in samples]
    weights = _class_weights(dwa, losses, len(classes))
    table = DwaSamples(
        [pair.image_id for pair in samples],
        np.array([pair.group for pair in samples], dtype=np.int64),
        np.array([pair.features for pair in samples]).reshape(len(samples), -1 if samples else 0),
        np.array([pair.metrics for pair in samples]).reshape(-1, len(schemas.ALL_METRICS)),
        np.array([loss.weighted(*weights) for loss in losses]),
        np.array([pair.is_random_pick for pair in samples], dtype=bool),
    )
    decision = decide_weights(dwa, params.seed, table, pool)
    columns = {f"w_{name}": decision.weights[:, index] for index, name in enumerate(schemas.ALL_METRICS)}
    columns["uncertainty"] = decision.uncertainty
    _write_by_image(out / "uncertainty.parquet", schemas.UNCERTAINTY, scores, columns)
    if decision.choice is not None:
        learned = decision
        if decision.used != LEARNED:
            weights_of = _by_features(decision.choice, pool)
            learned = _decision(dwa, LEARNED, "", weights_of, dwa.metrics, pool, decision.choice)
        found = {"uncertainty": learned.uncertainty}
        _write_by_image(out / "learned_uncertainty.parquet", schemas.PREVIOUS_UNCERTAINTY, scores, found)
    named_weights = _by_kind(classes, weights)
    files.write_json(out / "class_weights.json", named_weights)
    files.write_table(out / "dwa_samples.parquet", _samples_table(dwa, table, decision))
    document = _document(dwa, table, decision) | {
        "class_weights": named_weights,
        "class_difficulty": _by_kind(classes, class_difficulty(losses, len(classes))),
        "feature_importance": _feature_importance(dwa, decision, pool, classes),
    }
    files.write_json(out / "dwa.json", document)
    log.info("weigh: %s weights, %s", decision.used, decision.reason)


def _write_by_image(path: Path, schema: pa.Schema, scores: Path, columns: Mapping[str, Floats]) -> None:
    """Write columns of all images of the pool behind their ids, a part of them at a time."""
    start = 0
    with files.table_writer(path, schema) as append:
        for ids in files.row_groups(scores, schemas.SCORES, columns=["image_id"]):
            rows = slice(start, start + len(ids))
            found = {name: values[rows] for name, values in columns.items()}
            append(pa.table({"image_id": ids["image_id"], **found}, schema=schema))
            start = rows.stop


def _class_weights(dwa: DwaParams, losses: Sequence[Any], num_classes: int) -> ClassWeights:
    """Return the weights of the training loss; 1 in the comparisons, whose training must be the plain one."""
    if dwa.mode != "learned" or dwa.class_weights == "uniform":
        return unit_class_weights(num_classes)
    prior_count, weight_max = dwa.class_weight_prior_count, dwa.class_weight_max
    return class_weights(losses, num_classes, prior_count=prior_count, weight_max=weight_max)


def decide_weights(dwa: DwaParams, seed: int, samples: DwaSamples, pool: PoolFeatures) -> DwaDecision:
    """Choose the weights of this round: those of ``dwa.mode``, or what the samples support."""
    if dwa.mode == "activeteacher":
        return _active_teacher(pool)
    if dwa.mode == "fixed":
        return _common_weights("fixed", "dwa.mode is fixed", np.array(dwa.fixed_weights), dwa.metrics, pool)
    if dwa.mode != "learned":
        names = dwa.metrics if dwa.mode == EQUAL else [dwa.mode]
        return _common_weights(dwa.mode, f"dwa.mode is {dwa.mode}", np.ones(len(names)), names, pool)
    if len(samples) < max(dwa.min_training_samples, dwa.cv_folds) or not len(pool):
        reason = f"cold start: {len(samples)} pairs, dwa.min_training_samples is {dwa.min_training_samples}"
        return _prior(dwa, reason, pool)
    used = replace(samples, metrics=samples.metrics[:, [schemas.ALL_METRICS.index(name) for name in dwa.metrics]])
    choice = choose_weights(used, pool.features, dwa.metrics, _config(dwa, seed))
    if choice is None:
        return _prior(dwa, "the held-out pairs allow no rank correlation", pool)
    weights_of = _by_features(choice, pool) if choice.weights_T is None else _same_for_all(choice.weights_T)
    return _decision(dwa, choice.used, _reason(choice, dwa), weights_of, dwa.metrics, pool, choice)


def _prior(dwa: DwaParams, reason: str, pool: PoolFeatures) -> DwaDecision:
    """Use the rule that holds before there is evidence for another."""
    names = dwa.metrics if dwa.prior_rule == EQUAL else [dwa.prior_rule]
    return _common_weights(dwa.prior_rule, reason, np.ones(len(names)), names, pool)


def _config(dwa: DwaParams, seed: int) -> DwaConfig:
    return DwaConfig(
        hidden_units=dwa.hidden_units,
        epochs=dwa.epochs,
        learning_rate=dwa.learning_rate,
        weight_decay=dwa.weight_decay,
        weight_variance_penalties=tuple(dwa.weight_variance_penalties),
        prior_penalty=dwa.prior_penalty,
        allow_negative_weights=dwa.allow_negative_weights,
        cv_folds=dwa.cv_folds,
        min_gain_se=dwa.min_gain_se,
        prior_rule=dwa.prior_rule,
        min_random_samples=dwa.min_random_samples,
        seed=seed,
    )


def _reason(choice: WeightChoice, dwa: DwaParams) -> str:
    """Say which rule was chosen, with the figures that decided it."""
    learned, simple = choice.candidate(LEARNED), choice.candidate(choice.best_simple)
    comparison = (
        f"held-out rank correlation {learned.spearman:.2f} of learned weights against {simple.spearman:.2f} of "
        f"{choice.best_simple}, lead {learned.gain:+.2f} with standard error {learned.gain_standard_error:.2f}"
    )
    if choice.used == LEARNED:
        return f"{comparison}; complexity {choice.complexity}"
    if choice.used == choice.best_simple:
        return f"fallback: {comparison}, expected more than {dwa.min_gain_se:g} standard errors"
    prior = "equal weights" if dwa.prior_rule == EQUAL else dwa.prior_rule
    return f"fallback: {comparison}; {choice.best_simple} leads {prior} too little"


def _common_weights(used: str, reason: str, weights_M: Floats, names: Sequence[str], pool: PoolFeatures) -> DwaDecision:
    """Give all images the same weights of the named metrics."""
    return _decision(None, used, reason, _same_for_all(weights_M.astype(np.float64)), names, pool, None)


def _same_for_all(weights_T: Floats) -> _WeightsOf:
    return lambda rows: np.tile(weights_T, (rows.stop - rows.start, 1))


def _by_features(choice: WeightChoice, pool: PoolFeatures) -> _WeightsOf:
    return lambda rows: choice.ensemble.weights(pool.features[rows])


def _decision(
    dwa: DwaParams | None,
    used: str,
    reason: str,
    weights_of: _WeightsOf,
    names: Sequence[str],
    pool: PoolFeatures,
    choice: WeightChoice | None,
) -> DwaDecision:
    """Form the uncertainty (docs/method.md#eq-15) from weights of the terms that sum to 1 up to rounding.

    Weights are renormalized in float64 and U is clipped to the range of the image's own terms: a mean of float32
    softmax outputs sums to 1 + 1e-7, which would put U above the 1 that the metrics cannot exceed.
    """
    columns = [schemas.ALL_METRICS.index(name) for name in names]
    weights_PM, uncertainty_P = np.zeros((len(pool), len(schemas.ALL_METRICS))), np.zeros(len(pool))
    for rows in pool.blocks():
        terms_BT = mixture_terms(pool.metrics[rows][:, columns], signed=dwa is not None and dwa.allow_negative_weights)
        weights_BT = weights_of(rows)
        weights_BT = weights_BT / weights_BT.sum(axis=1, keepdims=True)
        uncertainty_P[rows] = np.clip(uncertainty(terms_BT, weights_BT), terms_BT.min(axis=1), terms_BT.max(axis=1))
        weights_PM[rows, columns] = metric_weights(weights_BT, len(names))
    return DwaDecision(used, reason, weights_PM, uncertainty_P, choice)


def _active_teacher(pool: PoolFeatures) -> DwaDecision:
    """Average confidence, entropy and number of classes, each divided by its maximum, as Active Teacher does."""
    max_3 = np.max([pool.active_teacher[rows].max(axis=0) for rows in pool.blocks()], axis=0, initial=0)
    divisor_3 = np.where(max_3 > 0, max_3, 1)
    means = [(pool.active_teacher[rows] / divisor_3).mean(axis=1) for rows in pool.blocks()]
    weights = np.zeros((len(pool), len(schemas.ALL_METRICS)))
    weights[:, [schemas.ALL_METRICS.index(name) for name in ("confidence", "entropy", "overlap")]] = 1 / 3
    reason = "dwa.mode is activeteacher: number of classes stands in for overlap"
    return DwaDecision("activeteacher", reason, weights, np.concatenate([np.zeros(0), *means]))


def _pool_features(scores: Path) -> PoolFeatures:
    # The network reads the metrics of detections.
    features = StoredColumns(scores, [*schemas.METRICS, "features"])
    return PoolFeatures(features, StoredColumns(scores, schemas.ALL_METRICS), StoredColumns(scores, _ACTIVE_TEACHER))


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of P numbers as (P,), of P equally long lists as (P, length)."""
    if not pa.types.is_list(column.type):
        return np.asarray(column.to_numpy())
    return np.asarray(pc.list_flatten(column).to_numpy()).reshape(len(column), -1 if len(column) else 0)


def _by_kind(classes: list[str], values_K: tuple[Floats, Floats]) -> dict[str, dict[str, float | None]]:
    """Name the values of positives and of claimed background; None for what was never seen."""
    return {
        kind: {
            name: None if np.isnan(value) else round(float(value), 6)
            for name, value in zip(classes, of_kind_K, strict=True)
        }
        for kind, of_kind_K in zip(("positive", "claimed_background"), values_K, strict=True)
    }


def _samples_table(dwa: DwaParams, samples: DwaSamples, decision: DwaDecision) -> pa.Table:
    """Return every sample with its loss and the two scores that were compared; one row per sample."""
    used = samples.metrics[:, [schemas.ALL_METRICS.index(name) for name in dwa.metrics]]
    held_out: Floats = np.full(len(samples), np.nan)
    if decision.choice:
        terms = mixture_terms(used, signed=dwa.allow_negative_weights)
        held_out = uncertainty(terms, decision.choice.held_out_weights)
    return pa.table(
        {
            "image_id": pa.array(samples.image_ids, pa.string()),
            "group": pa.array(samples.group, pa.int64()),
            "is_random_pick": pa.array(samples.is_random, pa.bool_()),
            "loss": pa.array(samples.loss, pa.float64()),
            **{
                name: pa.array(samples.metrics[:, index], pa.float64())
                for index, name in enumerate(schemas.ALL_METRICS)
            },
            "score_equal": pa.array(used.mean(axis=1), pa.float64()),
            "score_dwa_held_out": pa.array(held_out, pa.float64()),
        }
    )


def _document(dwa: DwaParams, samples: DwaSamples, decision: DwaDecision) -> dict[str, Any]:
    choice, names = decision.choice, dwa.weighed_metrics
    of_metrics = [schemas.ALL_METRICS.index(name) for name in dwa.metrics]
    shown = [schemas.ALL_METRICS.index(name) for name in names]
    means_B1 = samples.metrics[:, of_metrics].mean(axis=1, keepdims=True)
    scores = np.concatenate([means_B1, samples.metrics[:, shown]], axis=1).T
    is_evaluated = choice.is_evaluated if choice else evaluated_samples(samples.is_random, dwa.min_random_samples)
    alone = rank_correlations(scores[:, is_evaluated], samples.loss[is_evaluated], samples.group[is_evaluated])
    simple = [None] * (1 + len(names)) if alone is None else [round(float(value), 6) for value in alone]
    weights = {name: _mean_and_quantiles(decision.weights[:, schemas.ALL_METRICS.index(name)]) for name in names}
    return {
        "mode": dwa.mode,
        "used": decision.used,
        "reason": decision.reason,
        "complexity": choice.complexity if choice and decision.used == LEARNED else None,
        "best_simple": choice.best_simple if choice else None,
        "candidates": [_rounded(asdict(candidate)) for candidate in choice.candidates] if choice else [],
        "num_samples": len(samples),
        "num_random_samples": int(samples.is_random.sum()),
        "num_holdout_samples": int(is_evaluated.sum()) if choice else 0,
        "spearman_dwa": round(choice.candidate(LEARNED).spearman, 6) if choice else None,
        "spearman_equal": simple[0],
        "spearman_by_metric": dict(zip(names, simple[1:], strict=True)),
        "mean_weights": {name: mean for name, (mean, *_) in weights.items()},
        "weight_quantiles": {name: quantiles for name, (_, *quantiles) in weights.items()},
    }


def _mean_and_quantiles(weights_P: Floats) -> list[float]:
    """Return mean, 10 %, 50 % and 90 % quantile of a metric's weights; zeros without images."""
    if not len(weights_P):
        return [0.0] * 4
    found = [weights_P.mean(), *np.quantile(weights_P, [0.1, 0.5, 0.9])]
    return [round(float(value), 6) for value in found]


def _feature_importance(
    dwa: DwaParams, decision: DwaDecision, pool: PoolFeatures, classes: list[str]
) -> dict[str, Any] | None:
    """Rank the features by how much they change the weights between images; None where all weights are the same."""
    if decision.used != LEARNED or decision.choice is None:
        return None
    found = feature_importance(decision.choice.ensemble, pool.features, len(dwa.metrics))
    names = feature_names(classes)
    return {
        "std": round(found.std, 6),
        "features": [
            {
                "feature": names[index],
                "importance": round(float(found.importance_F[index]), 6),
                "effect_per_std": dict.fromkeys(dwa.weighed_metrics, 0.0)
                | {
                    name: round(float(shift), 6)
                    for name, shift in zip(dwa.metrics, found.effect_per_std_FM[index], strict=True)
                },
            }
            for index in np.argsort(-found.importance_F, kind="stable").tolist()
        ],
    }


def _rounded(document: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in document.items()}


def _body(workspace: Workspace) -> None:
    params = load_stage_params(workspace.params, "seed", "classes", "scoring", "dwa")
    out = workspace.derived("weigh")
    weigh(
        params,
        samples=all_samples(workspace, params.classes, params.dwa.history_batches, params.dwa.focal_gamma),
        scores=workspace.derived("score") / "scores.parquet",
        out=out,
    )
    outcomes = calibration_outcomes(
        workspace.derived("assemble") / "calibration.parquet", workspace.derived("infer"), params.classes
    )
    files.write_table(out / "calibration_outcomes.parquet", outcomes)


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("weigh", _body)


if __name__ == "__main__":
    main()
