"""What moves the metric weights from image to image: the trained networks, asked one feature at a time."""

from dataclasses import dataclass

import numpy as np

from detectron_ext.dwa import DwaEnsemble, FeatureRows, metric_weights
from detectron_ext.uncertainty_metrics import Floats

_MAX_IMAGES = 2_000  # of the pool, evenly spaced: more would only take longer


@dataclass(frozen=True)
class FeatureImportance:
    """How far the weights of single images lie apart, and which features put them there.

    The distance of two weight vectors is half the sum of their absolute differences: the weight that one of them
    gives to other metrics than the other does, 0 to 1.
    """

    std: float  # mean distance of an image's weights from the mean weights
    importance_F: Floats  # mean distance of an image's weights from those it had with the feature at the pool's mean
    effect_per_std_FM: Floats  # signed change of each weight for one standard deviation more of the feature


def feature_importance(ensemble: DwaEnsemble, pool_features: FeatureRows, num_metrics: int) -> FeatureImportance:
    """Hold one feature after the other at the pool's mean, and see what becomes of the weights.

    This asks the networks, not the data: a feature that merely goes along with one they read moves nothing. Two
    features that say the same share what they move.

    Args:
        ensemble: as trained.
        pool_features: of the unlabeled pool, at least one image.
        num_metrics: M; a signed mixture has twice as many terms.
    """
    features_PF = pool_features[:: -(-len(pool_features) // _MAX_IMAGES)]
    weights_PM = metric_weights(ensemble.weights(features_PF), num_metrics)
    standardized_PF = ensemble.standardize(features_PF).double().numpy()
    importance, effect_per_std = [], []
    for index in range(features_PF.shape[1]):
        ablated_PF = features_PF.copy()
        ablated_PF[:, index] = ensemble.mean[index]
        change_PM = weights_PM - metric_weights(ensemble.weights(ablated_PF), num_metrics)
        importance.append(_distance(change_PM))
        # least squares through the origin: at the mean there is no change
        z_P = standardized_PF[:, index]
        effect_per_std.append(z_P @ change_PM / max(z_P @ z_P, 1e-12))
    return FeatureImportance(
        _distance(weights_PM - weights_PM.mean(axis=0)), np.array(importance), np.array(effect_per_std)
    )


def _distance(difference_PM: Floats) -> float:
    return float(np.abs(difference_PM).sum(axis=1).mean() / 2)
