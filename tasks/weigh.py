"""Train the DWA network on the labels of earlier batches, and compute the uncertainty of every unlabeled image.

Reads  data/labels, data/detections_at_selection, derived/assemble/calibration.parquet, derived/infer, derived/score
Writes derived/weigh
Params seed, classes, scoring, dwa
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detectron_ext.detection_loss import class_difficulty
from detectron_ext.dwa import DwaConfig, DwaResult, DwaSamples, fit_dwa, rank_correlation
from detectron_ext.feature_importance import feature_importance
from detectron_ext.image_features import feature_names
from detectron_ext.uncertainty_metrics import Floats, uncertainty
from tasks.data import schemas
from tasks.data.dwa_samples import DwaSample, all_samples
from tasks.data.paths import Workspace
from tasks.params import StageParams, load_stage_params
from tasks.params.stages import DwaParams
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

log = logging.getLogger(__name__)
EQUAL_WEIGHTS = (1 / 3, 1 / 3, 1 / 3)
# Modes that give every image the same metric weights.
FIXED_WEIGHTS = {"equal": EQUAL_WEIGHTS, "entropy": (0.0, 1.0, 0.0)}


@dataclass(frozen=True)
class PoolFeatures:
    """The network's inputs for the unlabeled pool, P images."""

    image_ids: list[str]
    features: Floats  # (P, F)
    metrics: Floats  # (P, 3) normalized
    active_teacher: Floats  # (P, 3) raw confidence, raw entropy, distinct classes


@dataclass(frozen=True)
class DwaDecision:
    """Metric weights of the pool's images, and the reason for the chosen mode."""

    used: str
    reason: str
    weights: Floats  # (P, 3)
    uncertainty: Floats  # (P,)
    fit: DwaResult | None


def weigh(params: StageParams, *, samples: list[DwaSample], scores: Path, out: Path) -> None:
    """Write uncertainty.parquet, class_weights.json, dwa_samples.parquet and dwa.json.

    Args:
        params: sections seed, classes, scoring, dwa.
        samples: images a teacher had not been trained on, with what people found there.
        scores: scores.parquet of the pool.
        out: output folder.
    """
    classes: list[str] = params.classes
    pool = _pool_features(scores)
    difficulty_K = class_difficulty([pair.losses for pair in samples]) if samples else np.full(len(classes), np.nan)
    class_prior_K = class_prior(difficulty_K, params.dwa.class_weight_max)
    class_weights = len(classes) * class_prior_K
    table = DwaSamples(
        [pair.image_id for pair in samples],
        np.array([pair.group for pair in samples], dtype=np.int64),
        np.array([pair.features for pair in samples]).reshape(len(samples), -1 if samples else 0),
        np.array([pair.metrics for pair in samples]).reshape(-1, 3),
        np.array([pair.losses.weighted(class_weights) for pair in samples]),
    )
    decision = fit_or_fallback(params.dwa, params.seed, table, pool, class_prior_K)
    columns = {f"w_{name}": decision.weights[:, index] for index, name in enumerate(schemas.METRICS)}
    files.write_table(
        out / "uncertainty.parquet",
        pa.table(
            {"image_id": pool.image_ids, **columns, "uncertainty": decision.uncertainty},
            schema=schemas.UNCERTAINTY,
        ),
    )
    if decision.used == "learned" and decision.fit is not None and len(pool.image_ids):
        learned_class_K = decision.fit.ensemble.weights(pool.features)[1].mean(axis=0)
        class_weights = cap(learned_class_K, params.dwa.class_weight_max)
    named_weights = _by_class(classes, class_weights)
    ones = dict.fromkeys(classes, 1.0)
    files.write_json(out / "class_weights.json", {"positive": named_weights, "claimed_background": ones})
    files.write_table(out / "dwa_samples.parquet", _samples_table(table, decision))
    document = _document(params.dwa, table, decision, named_weights, _by_class(classes, difficulty_K))
    files.write_json(out / "dwa.json", document | {"feature_importance": _feature_importance(decision, pool, classes)})
    log.info("weigh: %s weights, %s", decision.used, decision.reason)


def fit_or_fallback(
    dwa: DwaParams, seed: int, samples: DwaSamples, pool: PoolFeatures, class_prior_K: Floats
) -> DwaDecision:
    """Choose the weights of this round; learned ones only if they rank held-out losses better than equal ones."""

    def fixed(used: str, reason: str, fit: DwaResult | None = None) -> DwaDecision:
        row = dwa.fixed_weights if used == "fixed" else FIXED_WEIGHTS.get(used, EQUAL_WEIGHTS)
        weights = np.tile(np.array(row, dtype=np.float64), (len(pool.image_ids), 1))
        return _decision(used, reason, weights, pool, fit)

    if dwa.mode == "activeteacher":
        return _active_teacher(pool)
    if dwa.mode != "learned":
        return fixed(dwa.mode, f"dwa.mode is {dwa.mode}")
    if len(samples) < max(dwa.min_training_samples, dwa.cv_folds) or not len(pool.image_ids):
        return fixed(
            "equal", f"cold start: {len(samples)} pairs, dwa.min_training_samples is {dwa.min_training_samples}"
        )
    config = DwaConfig(
        hidden_units=dwa.hidden_units,
        epochs=dwa.epochs,
        learning_rate=dwa.learning_rate,
        weight_decay=dwa.weight_decay,
        weight_variance_penalty=dwa.weight_variance_penalty,
        uniform_prior_penalty=dwa.uniform_prior_penalty,
        cv_folds=dwa.cv_folds,
        seed=seed,
    )
    fit = fit_dwa(samples, pool.features, class_prior_K, config)
    if fit.spearman_dwa is None or fit.spearman_equal is None:
        return fixed("equal", "the held-out pairs allow no rank correlation", fit)
    comparison = f"held-out rank correlation {fit.spearman_dwa:.2f} against {fit.spearman_equal:.2f} of equal weights"
    if fit.spearman_dwa <= fit.spearman_equal:
        return fixed("equal", f"fallback: {comparison}", fit)
    return _decision("learned", comparison, fit.ensemble.weights(pool.features)[0], pool, fit)


def _decision(used: str, reason: str, weights_P3: Floats, pool: PoolFeatures, fit: DwaResult | None) -> DwaDecision:
    """Form the uncertainty (docs/method.md#eq-15) from weights that sum to 1 up to rounding.

    Weights are renormalized in float64 and U is clipped to the range of the image's own metrics: a mean of float32
    softmax outputs sums to 1 + 1e-7, which would put U above the 1 that the metrics cannot exceed.
    """
    weights = weights_P3.astype(np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    scores = uncertainty(pool.metrics, weights)
    clipped = np.clip(scores, pool.metrics.min(axis=1), pool.metrics.max(axis=1))
    return DwaDecision(used, reason, weights, clipped, fit)


def class_prior(difficulty_K: Floats, weight_max: float) -> Floats:
    """Return q_c, proportional to the mean focal loss of the class, bounded; sums to 1 (docs/method.md#eq-10).

    A class nobody has seen yet counts as the mean of the others. Without any pair all are equal.
    """
    if np.isnan(difficulty_K).all():
        return np.full(len(difficulty_K), 1 / len(difficulty_K))
    filled_K = np.where(np.isnan(difficulty_K), np.nanmean(difficulty_K), difficulty_K)
    return cap(filled_K / max(filled_K.mean(), 1e-9), weight_max) / len(difficulty_K)


def cap(weight_K: Floats, weight_max: float) -> Floats:
    """Clip weights of mean 1 to [1 / weight_max, weight_max], and scale them to mean 1 again."""
    clipped_K = np.clip(weight_K, 1 / weight_max, weight_max)
    return np.asarray(clipped_K / clipped_K.mean())


def _active_teacher(pool: PoolFeatures) -> DwaDecision:
    """Average confidence, entropy and number of classes, each divided by its maximum, as Active Teacher does."""
    max_3 = pool.active_teacher.max(axis=0, initial=0)
    scaled = pool.active_teacher / np.where(max_3 > 0, max_3, 1)
    weights = np.tile(np.array(EQUAL_WEIGHTS), (len(pool.image_ids), 1))
    reason = "dwa.mode is activeteacher: number of classes stands in for overlap"
    return DwaDecision("activeteacher", reason, weights, scaled.mean(axis=1), None)


def _pool_features(scores: Path) -> PoolFeatures:
    table = files.read_table(scores, schemas.SCORES)
    count = len(table)
    metrics = np.column_stack([table[name].to_numpy() for name in schemas.METRICS])
    active_teacher = [table[name].to_numpy() for name in ("confidence_raw", "entropy_raw", "num_distinct_classes")]
    features_PD = pc.list_flatten(table["features"]).to_numpy().reshape(count, -1 if count else 0)
    return PoolFeatures(
        table["image_id"].to_pylist(),
        np.column_stack([metrics, features_PD]) if count else np.zeros((0, 0)),
        metrics,
        np.column_stack(active_teacher).astype(np.float64),
    )


def _by_class(classes: list[str], values_K: Floats) -> dict[str, float | None]:
    rounded = [None if np.isnan(value) else round(float(value), 6) for value in values_K]
    return dict(zip(classes, rounded, strict=True))


def _samples_table(samples: DwaSamples, decision: DwaDecision) -> pa.Table:
    """Return every sample with its loss and the two scores that were compared; one row per sample."""
    held_out = decision.fit.held_out_weights if decision.fit else np.full((len(samples), 3), np.nan)
    return pa.table(
        {
            "image_id": pa.array(samples.image_ids, pa.string()),
            "group": pa.array(samples.group, pa.int64()),
            "loss": pa.array(samples.loss, pa.float64()),
            **{name: pa.array(samples.metrics[:, index], pa.float64()) for index, name in enumerate(schemas.METRICS)},
            "score_equal": pa.array(samples.metrics.mean(axis=1), pa.float64()),
            "score_dwa_held_out": pa.array((held_out * samples.metrics).sum(axis=1), pa.float64()),
        }
    )


def _document(
    dwa: DwaParams,
    samples: DwaSamples,
    decision: DwaDecision,
    class_weights: dict[str, float | None],
    difficulty: dict[str, float | None],
) -> dict[str, Any]:
    fit = decision.fit
    equal = rank_correlation(samples, np.full((len(samples), 3), 1 / 3)) if len(samples) else None
    held_out = fit.spearman_dwa if fit else None
    quantiles = np.quantile(decision.weights, [0.1, 0.5, 0.9], axis=0) if len(decision.weights) else np.zeros((3, 3))
    mean = decision.weights.mean(axis=0) if len(decision.weights) else np.zeros(3)
    return {
        "mode": dwa.mode,
        "used": decision.used,
        "reason": decision.reason,
        "num_samples": len(samples),
        "num_holdout_samples": len(samples) if fit else 0,
        "spearman_dwa": None if held_out is None else round(held_out, 6),
        "spearman_equal": None if equal is None else round(equal, 6),
        "spearman_by_metric": {
            name: _rounded(rank_correlation(samples, np.tile(np.eye(3)[index], (len(samples), 1))))
            if len(samples)
            else None
            for index, name in enumerate(schemas.METRICS)
        },
        "class_weights": class_weights,
        "class_difficulty": difficulty,
        "mean_weights": {name: round(float(mean[index]), 6) for index, name in enumerate(schemas.METRICS)},
        "weight_quantiles": {
            name: [round(float(value), 6) for value in quantiles[:, index]]
            for index, name in enumerate(schemas.METRICS)
        },
    }


def _feature_importance(decision: DwaDecision, pool: PoolFeatures, classes: list[str]) -> dict[str, Any] | None:
    """Rank the features by how much they change the weights between images; None where all weights are the same."""
    if decision.used != "learned" or decision.fit is None:
        return None
    found = feature_importance(decision.fit.ensemble, pool.features)
    names = feature_names(classes)
    return {
        "std": round(found.std, 6),
        "features": [
            {
                "feature": names[index],
                "importance": round(float(found.importance_F[index]), 6),
                "effect_per_std": {
                    name: round(float(shift), 6)
                    for name, shift in zip(schemas.METRICS, found.effect_per_std_F3[index], strict=True)
                },
            }
            for index in np.argsort(-found.importance_F, kind="stable").tolist()
        ],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _body(workspace: Workspace) -> None:
    params = load_stage_params(workspace.params, "seed", "classes", "scoring", "dwa")
    weigh(
        params,
        samples=all_samples(workspace, params.classes, params.dwa.history_batches, params.dwa.focal_gamma),
        scores=workspace.derived("score") / "scores.parquet",
        out=workspace.derived("weigh"),
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("weigh", _body)


if __name__ == "__main__":
    main()
