"""What moves the metric weights from image to image: the trained networks, asked one feature at a time."""

from dataclasses import dataclass

import numpy as np

from detectron_ext.dwa import DwaEnsemble
from detectron_ext.metrics import Floats

_IMAGES_AT_MOST = 2_000  # of the pool, evenly spaced: more would only take longer


@dataclass(frozen=True)
class WeightDrivers:
    """How far the weights of single images lie apart, and which features put them there.

    The distance of two weight vectors is half the sum of their absolute differences: the weight that one of them
    gives to other metrics than the other does, 0 to 1.
    """

    spread: float  # mean distance of an image's weights from the mean weights
    moved_F: Floats  # mean distance of an image's weights from those it had with the feature at the pool's mean
    per_deviation_F3: Floats  # signed change of each weight for one standard deviation more of the feature


def weight_drivers(ensemble: DwaEnsemble, features_PF: Floats) -> WeightDrivers:
    """Hold one feature after the other at the pool's mean, and see what becomes of the weights.

    This asks the networks, not the data: a feature that merely goes along with one they read moves nothing. Two
    features that say the same share what they move.

    Args:
        ensemble: as trained.
        features_PF: of the unlabeled pool, at least one image.
    """
    features_PF = features_PF[:: -(-len(features_PF) // _IMAGES_AT_MOST)]
    weights_P3, _ = ensemble.weights(features_PF)
    standardised_PF = ensemble.standardised(features_PF).double().numpy()
    moved, per_deviation = [], []
    for index in range(features_PF.shape[1]):
        held_PF = features_PF.copy()
        held_PF[:, index] = ensemble.mean[index]
        change_P3 = weights_P3 - ensemble.weights(held_PF)[0]
        moved.append(_distance(change_P3))
        # least squares through the origin: at the mean there is no change
        z_P = standardised_PF[:, index]
        per_deviation.append(z_P @ change_P3 / max(z_P @ z_P, 1e-12))
    return WeightDrivers(_distance(weights_P3 - weights_P3.mean(axis=0)), np.array(moved), np.array(per_deviation))


def _distance(difference_P3: Floats) -> float:
    return float(np.abs(difference_P3).sum(axis=1).mean() / 2)
