"""The simulated annotator: what has to be done on an image, and the seconds it takes (docs/method.md#annotator-model).

Actions follow from the pre-drawn boxes that were handed out and the true ones: a person keeps what is right, corrects
what is badly placed or has another class, deletes what shows nothing, and draws what is missing.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from tasks.data.schemas import Box
from tasks.evaluation.matching import match_boxes
from tasks.params.annotation import AnnotatorModelParams


@dataclass(frozen=True)
class AnnotatorActions:
    """Number of actions on one image; ``kept + moved + deleted`` is the number of pre-drawn boxes."""

    images: int
    """Times the image is opened: 1."""
    drawn: int
    kept: int
    moved: int
    deleted: int
    class_changed: int
    """Of those kept or moved."""


def count_actions(predrawn: Sequence[Box], true_boxes: Sequence[Box], keep_iou: float) -> AnnotatorActions:
    """Count what turns the pre-drawn boxes of an image into the true ones.

    Args:
        predrawn: boxes that the annotator finds in the image.
        true_boxes: boxes that the image has in the end.
        keep_iou: IoU in [0.5, 1] from which on a box is kept as it is. Below an IoU of 0.5 a box is that of no object.
    """
    pairs = match_boxes(predrawn, true_boxes)
    kept = sum(pair.iou >= keep_iou for pair in pairs)
    return AnnotatorActions(
        images=1,
        drawn=len(true_boxes) - len(pairs),
        kept=kept,
        moved=len(pairs) - kept,
        deleted=len(predrawn) - len(pairs),
        class_changed=sum(not pair.same_class for pair in pairs),
    )


def mean_seconds(actions: AnnotatorActions, params: AnnotatorModelParams) -> float:
    """Return the mean time of the actions in seconds (docs/method.md#annotator-model)."""
    return float(np.dot(astuple(actions), seconds_per_action(params)))


def seconds_per_action(params: AnnotatorModelParams) -> tuple[float, ...]:
    """Return the seconds of one action each, in the order of the fields of ``AnnotatorActions``."""
    return (
        params.seconds_per_image,
        params.seconds_per_drawn_box,
        params.seconds_per_kept_box,
        params.seconds_per_moved_box,
        params.seconds_per_deleted_box,
        params.seconds_per_class_change,
    )


def draw_seconds(actions: AnnotatorActions, params: AnnotatorModelParams, *, seed: int, image_id: str) -> float:
    """Draw the time of an image in seconds: lognormal around the mean, the same for the same seed and image.

    Arms of a study with one seed share the draw, so that luck with an image's time favors none of them.

    Args:
        actions: on the image.
        params: seconds of each action, and the spread.
        seed: of the campaign.
        image_id: of the image.
    """
    digest = hashlib.sha256(f"annotator/{seed}/{image_id}".encode()).digest()
    normal = float(np.random.default_rng(int.from_bytes(digest[:16])).standard_normal())
    factor = math.exp(params.log_std * normal - params.log_std**2 / 2)  # of mean 1
    return mean_seconds(actions, params) * factor
