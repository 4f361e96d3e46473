"""Evaluate a model on parts of the validation set: by size, brightness, source and time of day of the images.

Shape letters: I images, B bootstrap samples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.evaluation.average_precision import average_precisions
from tasks.evaluation.coco_matching import Floats, Integers, match_detections
from tasks.evaluation.paired_bootstrap import mean_over_classes

SIZES = ("small", "medium", "large")
BRIGHTNESSES = ("dark", "medium", "bright")
MAX_SOURCES = 20
"""Of more, the smallest are one slice."""
OTHER_SOURCES, NO_TIME = "other sources", "unknown"
_CAMPAIGN_IMAGES = "data/images"
_SAMPLES = 200
_SEED = 0
_LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue, ITU-R BT.601."""


@dataclass(frozen=True)
class ImageTraits:
    """What an image's file says beside its boxes."""

    brightness: float
    """Mean luma, [0, 255]."""
    captured_hour: int | None
    """Hour of the camera's clock, 0 to 23; None: the file does not say."""
    file_name: str = ""
    """The user's own name, with the folders of the data set that was imported; empty: unknown."""


class SliceMetrics(TypedDict):
    """COCO mAP on some images, in percent."""

    images: int
    objects: int
    mAP: float | None
    """None without an object."""
    mAP_low: float | None
    """Lower end of the 95 % bootstrap interval over the images of the slice."""
    mAP_high: float | None


def mean_luma(pixels_HW3: NDArray[np.uint8]) -> float:
    """Return the mean luma of RGB pixels, [0, 255]."""
    return float(pixels_HW3.mean(axis=(0, 1)) @ np.array(_LUMA))


def slice_metrics(
    truth: pa.Table, predictions: pa.Table, classes: Sequence[str], traits: Mapping[str, ImageTraits]
) -> dict[str, dict[str, SliceMetrics]]:
    """Compute mAP by slice, by what the images are sliced by.

    Args:
        truth: schemas.ANNOTATED; crowds count as ``match_detections`` says.
        predictions: rows with image_id, boxes_xyxy, scores, class_ids; images of ``truth`` only.
        classes: names by class index.
        traits: by image id.

    Returns:
        ``size``, ``brightness``, ``source`` and ``time``, each with its slices; one by which all images are alike is
        left out.
    """
    matches = match_detections(truth, predictions, len(classes))
    objects_I = np.sum([entry.num_objects for entry in matches], axis=0)
    found: dict[str, dict[str, SliceMetrics]] = {}
    for name, slice_of_image in image_slices(truth, traits).items():
        found[name] = {}
        for label in sorted(set(slice_of_image), key=_order):
            members = np.flatnonzero(np.array(slice_of_image) == label)
            ap = average_precisions(matches, _counts(members, truth.num_rows)).mean(axis=2)
            found[name][label] = _metrics(mean_over_classes(100 * ap), len(members), int(objects_I[members].sum()))
    return found


def image_slices(truth: pa.Table, traits: Mapping[str, ImageTraits]) -> dict[str, list[str]]:
    """Return the slice of each image of ``truth`` by size, brightness, source and time of day."""
    of_images = [traits[image_id] for image_id in truth["image_id"].to_pylist()]
    area_px2 = np.multiply(truth["width_px"].to_numpy().astype(np.int64), truth["height_px"].to_numpy())
    slices = {
        "size": _thirds(area_px2, SIZES),
        "brightness": _thirds(np.array([image.brightness for image in of_images]), BRIGHTNESSES),
        "source": _sources(truth["uri"].to_pylist(), [image.file_name for image in of_images]),
        "time": [_part_of_day(image.captured_hour) for image in of_images],
    }
    return {name: labels for name, labels in slices.items() if len(set(labels)) > 1}


def _thirds(values_I: NDArray[np.float64] | Integers, labels: Sequence[str]) -> list[str]:
    """The third of the values that each lies in; equal values are in the same one."""
    borders = np.quantile(values_I, [1 / 3, 2 / 3]) if len(values_I) else [0.0, 0.0]
    return [labels[position] for position in np.searchsorted(borders, values_I, side="left")]


def _sources(uris: Sequence[str], file_names: Sequence[str]) -> list[str]:
    """Folders of the images; of those that were copied into the campaign, the folders that they came from."""
    folders = [_folder(uri, file_name) for uri, file_name in zip(uris, file_names, strict=True)]
    kept = {name for name, _ in Counter(folders).most_common(MAX_SOURCES)}
    return [name if name in kept else OTHER_SOURCES for name in folders]


def _folder(uri: str, file_name: str) -> str:
    folder = PurePosixPath(uri).parent.as_posix().replace("s3:/", "s3://")
    if folder != _CAMPAIGN_IMAGES:
        return folder
    return PurePosixPath(file_name).parent.as_posix() if "/" in file_name else "campaign"


def _part_of_day(hour: int | None) -> str:
    if hour is None:
        return NO_TIME
    start = hour // 6 * 6
    return f"{start:02d} to {start + 6:02d}"


def _order(label: str) -> tuple[int, str]:
    """Thirds by rank, all else by name, what is left over last."""
    ranks = {name: rank for names in (SIZES, BRIGHTNESSES) for rank, name in enumerate(names)}
    return (99 if label in (OTHER_SOURCES, NO_TIME) else ranks.get(label, 0)), label


def _counts(members: Integers, num_images: int) -> Integers:
    """Each image of the slice once in the first row, and drawn with replacement in the others, (1 + B, I)."""
    drawn = np.random.default_rng(_SEED).choice(members, size=(_SAMPLES, len(members)))
    rows = [members, *drawn]
    return np.array([np.bincount(row, minlength=num_images) for row in rows], dtype=np.int64)


def _metrics(map_B: Floats, num_images: int, num_objects: int) -> SliceMetrics:
    if not num_objects:
        return SliceMetrics(images=num_images, objects=0, mAP=None, mAP_low=None, mAP_high=None)
    low, high = np.quantile(map_B[1:], [0.025, 0.975])
    return SliceMetrics(
        images=num_images, objects=num_objects, mAP=float(map_B[0]), mAP_low=float(low), mAP_high=float(high)
    )
