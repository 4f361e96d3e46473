"""Objects of rare classes, cut out of labeled images and pasted into strong views of unlabeled ones.

The loader cuts and draws places; the trainer pastes, because it knows the pseudo-boxes that must stay visible
(docs/method.md#copy-paste). Shape shorthand: C candidate places, G targets of the view.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_ioa
from numpy.typing import NDArray
from torch import Tensor

from detectron_ext.augmentation import Example, Pixels
from detectron_ext.losses import CROWD_LABEL, set_weight

MAX_COVERED_FRAC = 0.3
"""A pasted object covers at most this share of the area of any target that is there before."""
_NUM_PLACES = 8
_MIN_SIDE_PX = 4


class ObjectPatch(NamedTuple):
    """An object to paste, and where it may go."""

    pixels: Tensor  # (3, h, w) uint8
    box_xyxy: Tensor  # (4,) of the object, px of the patch
    class_id: int
    corners_C2: Tensor  # (C, 2) upper left corners x, y in the view, whole px, in the order to be tried
    trains_box: bool = True  # a person's box is true; a pseudo-label's may be off
    score: float = 1.0  # the teacher's, of a pseudo-label


class RareObjectSampler:
    """Draws labeled objects: first a class in inverse proportion to its labeled boxes, then one of its boxes."""

    def __init__(self, labeled: Sequence[Example]) -> None:
        """Index the boxes of ``labeled`` by class."""
        self._objects: dict[int, list[tuple[int, int]]] = {}
        for image, example in enumerate(labeled):
            for box, class_id in enumerate(example.class_ids.tolist()):
                if class_id != CROWD_LABEL:  # a crowd region is no object that could be pasted
                    self._objects.setdefault(class_id, []).append((image, box))
        self._class_ids = sorted(self._objects)
        inverse = np.array([1 / len(self._objects[class_id]) for class_id in self._class_ids])
        self._chances = inverse / inverse.sum()

    def draw(self, rng: np.random.Generator) -> tuple[int, int] | None:
        """Return the numbers of an image and of its box; None where no box is labeled."""
        if not self._class_ids:
            return None
        objects = self._objects[int(rng.choice(self._class_ids, p=self._chances))]
        return objects[int(rng.integers(len(objects)))]


def cut_out(
    pixels: Pixels,
    box_xyxy: NDArray[np.float32],
    class_id: int,
    view_size_px: tuple[int, int],
    rng: np.random.Generator,
) -> ObjectPatch | None:
    """Cut the whole pixels that a box touches out of an image, and draw places for them.

    Args:
        pixels: (H, W, 3) of the labeled image, as augmented.
        box_xyxy: of the object in it.
        class_id: of the object.
        view_size_px: height and width of the view that the object is pasted into.
        rng: of the places.

    Returns:
        None where the object is smaller than 4 px, or does not fit into the view.
    """
    found = object_pixels(pixels, box_xyxy)
    if found is None:
        return None
    corners_C2 = draw_corners((found[0].shape[1], found[0].shape[2]), view_size_px, rng)
    return None if corners_C2 is None else ObjectPatch(*found, class_id, corners_C2)


def object_pixels(pixels: Pixels, box_xyxy: NDArray[np.float32]) -> tuple[Tensor, Tensor] | None:
    """Return the whole pixels that a box touches, (3, h, w), and the box in them, (4,); None below 4 px a side."""
    height, width = pixels.shape[:2]
    left, top = (int(max(np.floor(value), 0)) for value in box_xyxy[:2])
    right, bottom = (int(min(np.ceil(value), side)) for value, side in zip(box_xyxy[2:], (width, height), strict=True))
    if min(right - left, bottom - top) < _MIN_SIDE_PX:
        return None
    patch = np.ascontiguousarray(pixels[top:bottom, left:right].transpose(2, 0, 1))
    box = torch.from_numpy(np.array(box_xyxy, dtype=np.float32)) - torch.tensor([left, top, left, top])
    return torch.from_numpy(patch), box


def draw_corners(
    patch_size_px: tuple[int, int], view_size_px: tuple[int, int], rng: np.random.Generator
) -> Tensor | None:
    """Draw places for a patch in a view, both (height, width); None where it does not fit."""
    free_x, free_y = view_size_px[1] - patch_size_px[1], view_size_px[0] - patch_size_px[0]
    if min(free_x, free_y) < 0:
        return None
    corners_C2 = np.stack([rng.integers(0, free + 1, _NUM_PLACES) for free in (free_x, free_y)], axis=1)
    return torch.from_numpy(corners_C2)


def is_visible(boxes_R4: Tensor, covering_P4: Tensor) -> Tensor:
    """Return whether none of the covering boxes hides more than 30 % of a box's area, (R,) bool."""
    return (pairwise_ioa(Boxes(covering_P4), Boxes(boxes_R4)) <= MAX_COVERED_FRAC).all(dim=0)


def paste(view: dict[str, Any], targets: Instances, patch: ObjectPatch) -> tuple[dict[str, Any], Instances]:
    """Paste an object at the first place where every target stays visible; paste nothing where there is no such place.

    Args:
        view: Detectron2's input of the strong view.
        targets: its pseudo-boxes and ignore regions, with ``gt_trains_box``.
        patch: fits into the view.

    Returns:
        The view with the object's pixels, and the targets with one more.
    """
    height, width = patch.pixels.shape[1:]
    corner = _first_free_corner(targets.gt_boxes.tensor.cpu(), patch)
    if corner is None:
        return view, targets
    x, y = corner
    image = view["image"].clone()
    image[:, y : y + height, x : x + width] = patch.pixels
    device = targets.gt_boxes.device
    added = Instances(
        targets.image_size,
        gt_boxes=Boxes((patch.box_xyxy + torch.tensor([x, y, x, y]))[None].to(device)),
        gt_classes=torch.tensor([patch.class_id], device=device),
        gt_trains_box=torch.tensor([patch.trains_box], device=device),
    )
    if targets.has("gt_score"):
        added.gt_score = torch.tensor([patch.score], device=device)
    if targets.has("gt_weight"):
        set_weight(added, torch.ones(1))
    return {**view, "image": image}, Instances.cat([targets, added])


def _first_free_corner(boxes_G4: Tensor, patch: ObjectPatch) -> tuple[int, int] | None:
    height, width = patch.pixels.shape[1:]
    top_left_C2 = patch.corners_C2.float()
    bottom_right_C2 = top_left_C2 + torch.tensor([width, height])
    sides_CG2 = torch.minimum(bottom_right_C2[:, None], boxes_G4[None, :, 2:]) - torch.maximum(
        top_left_C2[:, None], boxes_G4[None, :, :2]
    )
    covered_CG = sides_CG2.clamp(min=0).prod(dim=2)
    area_G = (boxes_G4[:, 2:] - boxes_G4[:, :2]).clamp(min=0).prod(dim=1)
    is_free_C = (covered_CG <= MAX_COVERED_FRAC * area_G).all(dim=1)
    if not is_free_C.any():
        return None
    x, y = patch.corners_C2[int(is_free_C.int().argmax())].tolist()
    return x, y
