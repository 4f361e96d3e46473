"""The check of pseudo-labels as training uses it, and what the report shows of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detectron_ext.augmentation import Example
from detectron_ext.inference import prepare_image
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.pseudo_label_checks import PseudoLabelCheck, RegionPrototypes
from detectron_ext.trainer import TeacherStudentTrainer
from tasks.model.detector import ImageReader, resize_config
from tasks.params.training import ModelParams, SslParams

NUM_SHOWN = 6
NUM_LOOKED_AT = 48
"""Unlabeled images among which those to be shown are found."""
_MAX_CELLS = 48
"""Along a side of a map that is shown."""


def new_check(ssl: SslParams, student: PerImageRCNN, num_classes: int, seed: int) -> PseudoLabelCheck | None:
    """Return the check that ``ssl.pseudo_label_check`` wants; None: no check."""
    if ssl.pseudo_label_check == "none":
        return None
    num_features = student.roi_heads.box_head.output_shape.channels
    return PseudoLabelCheck(
        ssl.pseudo_label_check, ssl.pseudo_label_check_threshold, RegionPrototypes(num_classes, num_features), seed
    )


def check_summary(
    trainer: TeacherStudentTrainer,
    images: Sequence[Example],
    read: ImageReader,
    model: ModelParams,
    classes: Sequence[str],
) -> dict[str, Any] | None:
    """Say how many pseudo-labels the check held back, with some images that show why; None without a check.

    Args:
        trainer: at the end of the training.
        images: unlabeled ones; as many as are shown are taken from them, from the least to the most doubtful.
        read: gives their pixels.
        model: sizes at which the detector sees them.
        classes: names.
    """
    check = trainer.check
    if check is None:
        return None
    found = []
    for image in images:
        shown = _look_at(trainer, check, image, read, model, classes)
        if shown is not None:
            found.append(shown)
    found.sort(key=lambda shown: min(box["value"] for box in shown["boxes"]))
    step = max(len(found) - 1, 1) / max(NUM_SHOWN - 1, 1)
    chosen = found if len(found) <= NUM_SHOWN else [found[round(number * step)] for number in range(NUM_SHOWN)]
    return {
        "mode": check.mode,
        "threshold": check.threshold,
        "judged": check.num_judged,
        "below": check.num_below,
        "examples": chosen,
    }


@torch.no_grad()
def _look_at(
    trainer: TeacherStudentTrainer,
    check: PseudoLabelCheck,
    image: Example,
    read: ImageReader,
    model: ModelParams,
    classes: Sequence[str],
) -> dict[str, Any] | None:
    """Return the pseudo-labels of one image with their values and the map; None where there is none."""
    teacher = trainer.teacher
    prepared = prepare_image(read(image.uri), resize_config(model))
    [(detections, _)] = teacher.detect_with_regions([prepared.model_input])
    accepted = trainer.threshold.accepts(detections.scores.float().cpu(), detections.pred_classes.cpu())
    if not accepted.any():
        return None
    checked = check.judge([detections])
    batch = teacher.preprocess_image([prepared.model_input])
    [energy_HW] = teacher.activation_energies(teacher.backbone(batch.tensor), batch)
    height, width = prepared.model_input["image"].shape[1:]
    scale = torch.tensor([prepared.width_px / width, prepared.height_px / height] * 2)
    boxes = [
        {
            "xyxy_px": [round(value, 1) for value in (detections.pred_boxes.tensor[index].cpu() * scale).tolist()],
            "class_name": classes[int(detections.pred_classes[index])],
            "score": round(float(detections.scores[index]), 3),
            "activation": round(float(checked.activation_R[index]), 3),
            "similarity": round(float(checked.similarity_R[index]), 3),
            "value": round(float(checked.value_R[index]), 3),
        }
        for index in accepted.nonzero().flatten().tolist()
    ]
    return {
        "image_id": image.image_id,
        "uri": image.uri,
        "width_px": prepared.width_px,
        "height_px": prepared.height_px,
        "boxes": boxes,
        "map_percent": _percent_of_peak(energy_HW),
    }


def _percent_of_peak(energy_HW: Tensor) -> list[list[int]]:
    """Return the activation, the root of its energy, as whole percent of the largest; coarser where it is large."""
    height, width = energy_HW.shape
    size = min(height, _MAX_CELLS), min(width, _MAX_CELLS)
    small = F.adaptive_avg_pool2d(energy_HW.sqrt()[None], size)[0]
    percent: list[list[int]] = (100 * small / small.max()).round().int().tolist()
    return percent
