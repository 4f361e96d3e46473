"""Compute COCO mAP, overall and per class, from boxes in memory."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa

from tasks.evaluation.average_precision import average_precisions
from tasks.evaluation.coco_matching import ALL_AREAS, AREA_RANGES_PX2, Floats, match_detections


class MapMetrics(TypedDict):
    """Average precision in percent, 0..100. None where the validation set has no object of that class or size."""

    mAP: float
    AP50: float
    AP75: float
    AP_small: float | None
    AP_medium: float | None
    AP_large: float | None
    per_class: dict[str, float | None]


def coco_map(
    truth: pa.Table, predictions: pa.Table, classes: Sequence[str], max_detections: int | None = None
) -> MapMetrics:
    """Compute COCO AP50:95, AP50 and AP75 of one model, and AP50:95 by size of the objects.

    Args:
        truth: schemas.ANNOTATED; ``match_detections`` says how crowds count.
        predictions: rows with image_id, boxes_xyxy, scores, class_ids; images of ``truth`` only.
        classes: names by class index.
        max_detections: boxes per image and class that count; None: as ``match_detections`` says.
    """

    def class_ap(area_range_px2: tuple[float, float]) -> Floats:
        matches = match_detections(
            truth, predictions, len(classes), area_range_px2=area_range_px2, max_detections=max_detections
        )
        return np.asarray(100 * average_precisions(matches, np.ones((1, truth.num_rows), dtype=np.int64))[0])

    ap_KT = class_ap(ALL_AREAS)
    by_size = {size: _mean(class_ap(area_range_px2)) for size, area_range_px2 in AREA_RANGES_PX2.items()}
    return MapMetrics(
        mAP=_mean(ap_KT) or 0.0,
        AP50=_mean(ap_KT[:, 0]) or 0.0,
        AP75=_mean(ap_KT[:, 5]) or 0.0,
        AP_small=by_size["small"],
        AP_medium=by_size["medium"],
        AP_large=by_size["large"],
        per_class={name: _mean(ap_T) for name, ap_T in zip(classes, ap_KT, strict=True)},
    )


def _mean(ap: Floats) -> float | None:
    """Average over the classes that have objects; None where none has."""
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if known.size else None
