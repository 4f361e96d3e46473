"""Measure how far two models report the same objects on the same images."""

from typing import Any

import pyarrow as pa

from tasks.data.schemas import Box, stored_class_names
from tasks.evaluation.matching import match_boxes

MIN_SCORE = 0.5
"""Detections with a lower score do not count: below it a detector itself does not expect to be right."""


def model_agreement(first: pa.Table, second: pa.Table) -> float | None:
    """Return the F1 of the objects that both models report, in [0, 1]; None where neither reports one.

    Objects are the same at IoU 0.5 and of the same class name.

    Args:
        first: rows of schemas.PREDICTIONS of one model, with the class names in the metadata.
        second: of the other model; images of only one of them do not count.
    """
    boxes_of = [_boxes_by_image(table) for table in (first, second)]
    same = total = 0
    for image_id in boxes_of[0].keys() & boxes_of[1].keys():
        here, there = (boxes[image_id] for boxes in boxes_of)
        same += sum(pair.same_class for pair in match_boxes(here, there))
        total += len(here) + len(there)
    return 2 * same / total if total else None


def _boxes_by_image(table: pa.Table) -> dict[str, list[Box]]:
    names = stored_class_names(table.schema) or []
    return {row["image_id"]: _boxes(row, names) for row in table.to_pylist()}


def _boxes(row: dict[str, Any], names: list[str]) -> list[Box]:
    corners = row["boxes_xyxy"]
    return [
        Box(category=names[class_id], xyxy_px=tuple(corners[4 * n : 4 * n + 4]))
        for n, (score, class_id) in enumerate(zip(row["scores"], row["class_ids"], strict=True))
        if score >= MIN_SCORE
    ]
