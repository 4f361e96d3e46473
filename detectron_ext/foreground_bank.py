"""Objects that the teacher was sure of in unlabeled images, kept by class to be pasted in place of labeled ones.

Labels of a rare class are few, and pasted again and again they teach these few pictures. Trusted pseudo-labels show the
class in other guises (docs/method.md#copy-paste).
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import Instances
from torch import Tensor

from detectron_ext.copy_paste import ObjectPatch, draw_corners, object_pixels

CAPACITY = 16
"""Newest objects of each class; older ones are dropped."""
_MAX_VIEW_FRAC = 0.25
"""An object that covers more of its image is not kept: it would hide too much, and checkpoints would grow."""


class BankedObject(NamedTuple):
    """An object cut out of a weak view."""

    pixels: Tensor  # (3, h, w)
    box_xyxy: Tensor  # (4,) px of the pixels
    score: float


class ForegroundBank:
    """Trusted pseudo-labels by class; each process has its own."""

    def __init__(self, num_classes: int, swap_frac: float, min_score: float, seed: int, trains_box: bool) -> None:
        """Begin empty.

        Args:
            num_classes: K.
            swap_frac: chance that a labeled object is replaced by a kept one of its class.
            min_score: of the teacher, from which a pseudo-label is kept.
            seed: of the draws.
            trains_box: whether the boxes of pseudo-labels are trained.
        """
        self._objects: list[deque[BankedObject]] = [deque(maxlen=CAPACITY) for _ in range(num_classes)]
        self._swap_frac, self._min_score, self._seed, self._trains_box = swap_frac, min_score, seed, trains_box

    def add(self, weak_inputs: Sequence[dict[str, Any]], targets: Sequence[Instances]) -> None:
        """Keep the trusted ones among pseudo-labels: sure enough, and not held back by a check.

        Args:
            weak_inputs: Detectron2 inputs that the teacher saw.
            targets: of ``pseudo_label``, with ``gt_score``.
        """
        for view, own in zip(weak_inputs, targets, strict=True):
            trusted = own[(own.gt_classes >= 0) & (own.gt_score >= self._min_score)]
            if trusted.has("gt_weight"):
                trusted = trusted[trusted.gt_weight >= 1]
            if not len(trusted):
                continue
            pixels = view["image"].cpu().numpy().transpose(1, 2, 0)
            rows = zip(
                trusted.gt_boxes.tensor.cpu().numpy(),
                trusted.gt_classes.tolist(),
                trusted.gt_score.tolist(),
                strict=True,
            )
            for box, class_id, score in rows:
                found = object_pixels(pixels, box)
                if found is not None and found[0][0].numel() <= _MAX_VIEW_FRAC * pixels.shape[0] * pixels.shape[1]:
                    self._objects[class_id].append(BankedObject(*found, score))

    def swap(
        self, patches: Sequence[ObjectPatch], view_size_px: tuple[int, int], place_in_training: Sequence[int]
    ) -> list[ObjectPatch]:
        """Replace some labeled objects by kept ones of the same class, each with chance ``swap_frac``.

        Args:
            patches: labeled objects for one view.
            view_size_px: height and width of the view.
            place_in_training: numbers that tell this view from all others; the draws follow from them.
        """
        rng = np.random.default_rng([self._seed, 6, *place_in_training])
        return [self._swap_one(patch, view_size_px, rng) for patch in patches]

    def _swap_one(self, patch: ObjectPatch, view_size_px: tuple[int, int], rng: np.random.Generator) -> ObjectPatch:
        kept = self._objects[patch.class_id]
        if rng.random() >= self._swap_frac or not kept:
            return patch
        chosen = kept[int(rng.integers(len(kept)))]
        corners_C2 = draw_corners((chosen.pixels.shape[1], chosen.pixels.shape[2]), view_size_px, rng)
        if corners_C2 is None:
            return patch
        return ObjectPatch(chosen.pixels, chosen.box_xyxy, patch.class_id, corners_C2, self._trains_box, chosen.score)

    def state_dict(self) -> dict[str, Any]:
        """Return the objects, by class, oldest first."""
        return {"objects": [[tuple(one) for one in kept] for kept in self._objects]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the objects."""
        self._objects = [deque((BankedObject(*one) for one in kept), maxlen=CAPACITY) for kept in state["objects"]]
