"""Make the student's inputs of a step's unlabeled images: strong views, their targets, and objects pasted into them."""

from collections.abc import Sequence
from typing import Any

from detectron_ext.copy_paste import ObjectPatch, is_visible, paste
from detectron_ext.data import StepBatch
from detectron_ext.distributed import rank
from detectron_ext.foreground_bank import ForegroundBank
from detectron_ext.pseudo_labels import PseudoLabels
from detectron_ext.relations import TeacherRegions


def with_pseudo_labels(
    batch: StepBatch, found: PseudoLabels, bank: ForegroundBank | None, iteration: int
) -> list[dict[str, Any]]:
    """Return the strong views of a step with their pseudo-labels, and with the objects that are pasted into them.

    Args:
        batch: of the step.
        found: pseudo-labels of its weak views; the teacher's regions that a pasted object covers are left out.
        bank: gives trusted pseudo-labels in place of some pasted objects; None: there is none.
        iteration: of the step; with the process and the image it decides what the bank gives.
    """
    inputs = []
    for slot, (strong, own) in enumerate(zip(batch.unlabeled_strong, found.targets, strict=True)):
        view, targets = strong, own
        for patch in _patches(batch, slot, bank, iteration):
            view, targets = paste(view, targets, patch)
        example = {**view, "instances": targets, "is_pseudo_labeled": True}
        if found.regions is not None:
            boxes, features_RF = found.regions[slot]
            is_visible_R = is_visible(boxes.tensor, targets.gt_boxes.tensor[len(own) :])
            example["regions"] = TeacherRegions(boxes[is_visible_R], features_RF[is_visible_R])
        inputs.append(example)
    return inputs


def _patches(batch: StepBatch, slot: int, bank: ForegroundBank | None, iteration: int) -> Sequence[ObjectPatch]:
    """Return the objects to paste into one of the step's strong views."""
    patches = batch.patches[slot] if batch.patches else ()
    if bank is None or not patches:
        return patches
    height, width = batch.unlabeled_strong[slot]["image"].shape[1:]
    return bank.swap(patches, (height, width), (iteration, rank(), slot))
