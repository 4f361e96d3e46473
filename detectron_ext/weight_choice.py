"""Choose the rule that weights the metrics, no more complex than the samples support (docs/method.md#choice).

Shape shorthand: B samples, F features, M metrics, T terms of the mixture, K folds, C complexities, R rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectron_ext.dwa import (
    DwaConfig,
    DwaEnsemble,
    DwaNetworks,
    DwaSamples,
    FeatureRows,
    equal_weights,
    fit_networks,
    mean_and_std,
    mixture_terms,
)
from detectron_ext.ranking import Correlations, correlations, ranking_pairs
from detectron_ext.uncertainty_metrics import Floats

EQUAL = "equal"
LEARNED = "learned"


@dataclass(frozen=True)
class Candidate:
    """One rule, and how well it ranks samples that it has not learned from."""

    name: str
    spearman: float
    standard_error: float
    gain: float  # lead over the best of equal weights and of each metric alone
    gain_standard_error: float
    chosen: bool = False


@dataclass(frozen=True)
class WeightChoice:
    """The chosen rule and the figures of all candidates."""

    used: str  # EQUAL, LEARNED, or the name of the one term that counts
    weights_T: Floats | None  # of a rule that gives all images the same weights and learns nothing
    ensemble: DwaEnsemble  # the learned rule at the complexity that all samples support
    complexity: str  # name of that complexity
    best_simple: str  # best of equal weights and of each term alone
    candidates: tuple[Candidate, ...]  # simplest first
    held_out_weights: Floats  # (B, T) of the learned rule; the networks and their complexity never saw the sample
    is_evaluated: NDArray[np.bool_]  # (B,) the samples on which the rules were compared

    def candidate(self, name: str) -> Candidate:
        """Return the figures of one rule."""
        return next(candidate for candidate in self.candidates if candidate.name == name)


@dataclass(frozen=True)
class _CrossFit:
    """Weights of all samples by complexity and by the folds that the network was trained without."""

    names: tuple[str, ...]  # (C,) simplest first
    fold_B: NDArray[np.int64]
    weights: dict[tuple[int, ...], Floats]  # (C, B, T) by the folds left out, one or two

    def held_out(self, without: tuple[int, ...] = ()) -> Floats:
        """Return weights (C, B, T), each fold's by networks that saw neither it nor ``without``; NaN in ``without``."""
        found_CBT = np.full_like(self.weights[0,], np.nan)
        for fold in np.unique(self.fold_B):
            if fold not in without:
                is_fold = self.fold_B == fold
                found_CBT[:, is_fold] = self.weights[tuple(sorted({int(fold), *without}))][:, is_fold]
        return found_CBT


def choose_weights(
    samples: DwaSamples, pool_features: FeatureRows, metric_names: Sequence[str], config: DwaConfig
) -> WeightChoice | None:
    """Choose among equal weights, each term alone and learned mixtures, by nested cross-validation.

    Args:
        samples: at least ``config.cv_folds`` different images.
        pool_features: (P, F), for standardization: the pool has more images than ``samples``.
        metric_names: names of the M metrics.
        config: sizes, schedule and the margin of the choice.

    Returns:
        None where the samples allow no rank correlation, such as with equal losses.
    """
    terms_BT = mixture_terms(samples.metrics, signed=config.allow_negative_weights)
    names = [EQUAL, *metric_names]
    if config.allow_negative_weights:
        names += [f"-{name}" for name in metric_names]
    equal_T = equal_weights(len(metric_names), signed=config.allow_negative_weights)
    simple_RT = np.concatenate([equal_T[None], np.eye(len(equal_T))])
    mean, std = mean_and_std(pool_features)
    std = np.where(std > 1e-6, std, 1.0)
    features = torch.from_numpy(((samples.features - mean) / std).clip(-4, 4)).float()
    prior = names.index(config.prior_rule)
    fit, networks = _cross_fit(samples, features, terms_BT, simple_RT[prior], config)
    is_evaluated = evaluated_samples(samples.is_random, config.min_random_samples)
    nested_BT = _nested_weights(fit, samples, terms_BT, is_evaluated, config.min_gain_se)
    rule_weights = [*np.repeat(simple_RT[:, None], len(samples), axis=1), *fit.held_out(), nested_BT]
    score_RB = np.stack([(weights_BT * terms_BT).sum(axis=1) for weights_BT in rule_weights])
    found = _correlations(score_RB, samples, np.flatnonzero(is_evaluated))
    if found is None:
        return None
    num_simple = len(simple_RT)
    complexity = choose_simplest(found, range(num_simple, len(score_RB) - 1), config.min_gain_se)
    best_simple = int(found.value_R[:num_simple].argmax())
    learned = len(score_RB) - 1
    chosen = choose_simplest(found, (prior, best_simple), config.min_gain_se)
    if found.lead(learned, best_simple) > config.min_gain_se * found.standard_error(learned, best_simple):
        chosen = learned
    all_names = [*names, *fit.names, LEARNED]
    members = tuple(
        (complexity - num_simple) * len(fit.weights) + index for index, key in enumerate(fit.weights) if len(key) == 1
    )
    return WeightChoice(
        used=all_names[chosen],
        weights_T=None if chosen == learned else simple_RT[chosen],
        ensemble=DwaEnsemble(networks.subset(members), mean, std),
        complexity=all_names[complexity],
        best_simple=names[best_simple],
        candidates=tuple(
            Candidate(
                name,
                float(found.value_R[rule]),
                found.standard_error(rule),
                found.lead(rule, best_simple),
                found.standard_error(rule, best_simple),
                chosen=rule == chosen or (chosen == learned and rule == complexity),
            )
            for rule, name in enumerate(all_names)
        ),
        held_out_weights=nested_BT,
        is_evaluated=is_evaluated,
    )


def evaluated_samples(is_random_B: NDArray[np.bool_], min_random_samples: int) -> NDArray[np.bool_]:
    """Return the samples to compare rules on, (B,): the uniformly drawn ones if there are enough, else all.

    Chosen images have a large U by the rule of their day. Among them that rule, and all that resemble it, rank worse
    than over the pool.
    """
    return is_random_B if is_random_B.sum() >= min_random_samples else np.ones_like(is_random_B)


def _correlations(score_RB: Floats, samples: DwaSamples, index: NDArray[np.intp]) -> Correlations | None:
    image_ids = [samples.image_ids[i] for i in index]
    return correlations(score_RB[:, index], samples.loss[index], samples.group[index], image_ids)


def choose_simplest(found: Correlations, rules: Sequence[int], min_gain_se: float) -> int:
    """Return the first of ``rules`` that the best of them does not beat by more than ``min_gain_se`` standard errors.

    Args:
        found: rank correlations.
        rules: indices, simplest first.
        min_gain_se: margin in standard errors of the lead over the other rule.
    """
    best = max(rules, key=lambda rule: found.value_R[rule])
    return next(
        rule
        for rule in rules
        if rule == best or found.lead(best, rule) <= min_gain_se * found.standard_error(best, rule)
    )


def _cross_fit(
    samples: DwaSamples, features: Tensor, terms_BT: Floats, prior_T: Floats, config: DwaConfig
) -> tuple[_CrossFit, DwaNetworks]:
    """Train every complexity without each fold and without each two folds, all networks side by side."""
    penalties = (float("inf"), *sorted(config.weight_variance_penalties, reverse=True))
    names = ("common", *(f"per_image_c={penalty:g}" for penalty in penalties[1:]))
    fold_B = assign_folds(samples.image_ids, config.cv_folds, config.seed)
    folds = range(config.cv_folds)
    left_out = [*((fold,) for fold in folds), *combinations(folds, 2)]
    is_training_SB = np.array([~np.isin(fold_B, folds) for folds in left_out])
    pairs = ranking_pairs(samples.loss, samples.group, is_training_SB, config.seed)
    networks = fit_networks(
        features,
        terms_BT,
        np.tile(is_training_SB, (len(penalties), 1)),
        type(pairs)(*(part.repeat(len(penalties), 1) for part in pairs)),
        np.repeat(penalties, len(left_out)).tolist(),
        prior_T,
        config,
    )
    with torch.no_grad():
        weights_SBT = networks(features).double().numpy().swapaxes(1, 2)
    by_complexity = weights_SBT.reshape(len(penalties), len(left_out), *weights_SBT.shape[1:])
    return _CrossFit(names, fold_B, {key: by_complexity[:, index] for index, key in enumerate(left_out)}), networks


def _nested_weights(
    fit: _CrossFit, samples: DwaSamples, terms_BT: Floats, is_evaluated: NDArray[np.bool_], min_gain_se: float
) -> Floats:
    """Return the learned rule's weights (B, T), its complexity chosen without the fold that is weighted.

    For each fold the complexity is the one that the other folds choose among themselves.
    """
    nested_BT = np.empty_like(terms_BT)
    for fold in np.unique(fit.fold_B):
        is_fold = fit.fold_B == fold
        score_CB = (fit.held_out((int(fold),)) * terms_BT).sum(axis=2)
        inner = _correlations(score_CB, samples, np.flatnonzero(~is_fold & is_evaluated))
        complexity = 0 if inner is None else choose_simplest(inner, range(len(fit.names)), min_gain_se)
        nested_BT[is_fold] = fit.weights[int(fold),][complexity, is_fold]
    return nested_BT


def assign_folds(image_ids: Sequence[str], cv_folds: int, seed: int) -> NDArray[np.int64]:
    """Assign samples to balanced folds by image id, (B,); all samples of one image share a fold."""
    unique = sorted(set(image_ids))
    order = np.random.default_rng(seed).permutation(len(unique))
    fold_by_id = {image_id: int(position) % cv_folds for image_id, position in zip(unique, order, strict=True)}
    return np.array([fold_by_id[image_id] for image_id in image_ids], dtype=np.int64)
