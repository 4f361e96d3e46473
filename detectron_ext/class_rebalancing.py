"""A second stage for classes of unlike frequency: only the class scores change, features and boxes stay.

Shape shorthand: K foreground classes, F features of a region.
"""

from collections.abc import Mapping

from torch import Tensor

SCORE_WEIGHT = "roi_heads.box_predictor.cls_score.weight"
"""The score layer's weight in a detector's state, (K+1, F), background last."""
_MIN_NORM = 1e-12


def tau_normalize(state: Mapping[str, Tensor], tau: float) -> dict[str, Tensor]:
    """Make the norms of the foreground classes' score weights alike (docs/method.md#tau-norm).

    Args:
        state: of a trained detector; stays as it is.
        tau: in [0, 1]; 0 changes nothing, 1 gives every foreground class the geometric mean of their norms.

    Returns:
        The state with another score weight; bias and background as before.
    """
    if tau == 0:
        return dict(state)
    weight_KF = state[SCORE_WEIGHT].clone()
    norm_K = weight_KF[:-1].norm(dim=1).clamp(min=_MIN_NORM)
    mean_norm = norm_K.log().mean().exp()
    weight_KF[:-1] *= ((mean_norm / norm_K) ** tau)[:, None]
    return {**state, SCORE_WEIGHT: weight_KF}
