"""Cut the teacher's errors out of the validation images, for the section on its errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.data.schemas import ANNOTATED
from tasks.reporting.errors_by_class import BACKGROUND
from tasks.reporting.report_data import ReportData
from tasks.reporting.thumbnails import crop_jpeg
from tasks.storage import files


@dataclass(frozen=True)
class ErrorCrop:
    """One error as the page shows it."""

    data_uri: str
    """JPEG as a data URI; empty where the image cannot be opened here."""
    text: str


@dataclass(frozen=True)
class ErrorCrops:
    """Errors of one kind."""

    title: str
    crops: Sequence[ErrorCrop]


def error_crops(data: ReportData, protocols: Mapping[str, Any]) -> list[ErrorCrops]:
    """Return pictures of the most frequent errors; none where the protocol ``confusion`` was not computed."""
    examples: Sequence[Mapping[str, Any]] = protocols.get("confusion", {}).get("examples", [])
    if not examples:
        return []
    val = files.read_table(data.val, ANNOTATED, columns=["image_id", "uri"])
    uris = dict(zip(val["image_id"].to_pylist(), val["uri"].to_pylist(), strict=True))
    names = [*data.classes, BACKGROUND]
    kinds: dict[tuple[int, int], list[ErrorCrop]] = {}
    for example in examples:
        image_id, score = example["image_id"], example["score"]
        crop = crop_jpeg(uris[image_id], image_id, data.root, example["box_xyxy"])
        text = image_id[:8] if score is None else f"{image_id[:8]}, score {score:.2f}"
        kinds.setdefault((example["true_class"], example["predicted_class"]), []).append(ErrorCrop(crop, text))
    return [ErrorCrops(_title(names[true], names[predicted]), crops) for (true, predicted), crops in kinds.items()]


def _title(true: str, predicted: str) -> str:
    if predicted == BACKGROUND:
        return f"{true}, missed"
    return f"{predicted}, where nothing is" if true == BACKGROUND else f"{true} taken for {predicted}"
