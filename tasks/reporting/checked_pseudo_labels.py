"""What the check of pseudo-labels did, and pictures of some with the map that it looked at."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.reporting.thumbnails import map_thumbnail
from tasks.runtime.formatting import pluralize


@dataclass(frozen=True)
class CheckedBox:
    """A pseudo-label in a picture; corners in pixels of the picture."""

    x: float
    y: float
    width: float
    height: float
    color: int
    class_name: str
    score: float
    activation: float
    similarity: float
    is_below: bool


@dataclass(frozen=True)
class CheckedPicture:
    """An unlabeled image with its pseudo-labels and the map."""

    image_id: str
    data_uri: str
    width_px: int
    height_px: int
    boxes: list[CheckedBox]


def check_text(train_summary: Mapping[str, Any]) -> str:
    """Say what the check held back; empty without one."""
    check = train_summary.get("pseudo_label_check")
    if check is None:
        return ""
    effect = "left out: neither object nor background" if check["mode"] == "veto" else "counted less"
    share = f" ({100 * check['below'] / check['judged']:.0f} %)" if check["judged"] else ""
    return (
        f"The check judged {pluralize(check['judged'], 'pseudo-label')} over the training; {check['below']}{share} had"
        f" a value below {check['threshold']:g} and were {effect}."
    )


def checked_pictures(
    train_summary: Mapping[str, Any], root: Path, class_color: Mapping[str, int], max_pictures: int
) -> list[CheckedPicture]:
    """Draw the examples that training kept, the most doubtful first."""
    check = train_summary.get("pseudo_label_check") or {"examples": [], "threshold": 0.0}
    return [_picture(shown, check["threshold"], root, class_color) for shown in check["examples"][:max_pictures]]


def _picture(shown: Mapping[str, Any], threshold: float, root: Path, class_color: Mapping[str, int]) -> CheckedPicture:
    size_px = shown["width_px"], shown["height_px"]
    data_uri, (width_px, height_px) = map_thumbnail(
        shown["uri"], shown["image_id"], root, size_px, shown["map_percent"]
    )
    scale = width_px / size_px[0]
    boxes = []
    for box in sorted(shown["boxes"], key=lambda box: box["value"]):
        x1, y1, x2, y2 = (corner * scale for corner in box["xyxy_px"])
        boxes.append(
            CheckedBox(
                x=x1,
                y=y1,
                width=x2 - x1,
                height=y2 - y1,
                color=class_color.get(box["class_name"], 0),
                is_below=box["value"] < threshold,
                **{name: box[name] for name in ("class_name", "score", "activation", "similarity")},
            )
        )
    return CheckedPicture(shown["image_id"], data_uri, width_px, height_px, boxes)
