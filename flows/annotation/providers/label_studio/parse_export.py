"""From Label Studio's JSON export to answers. It checks nothing people draw, and neither does this: the door does.

Its COCO export is not used: there, class ids follow the alphabet, file names are of its own making and our image ids
are gone.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flows.annotation.providers.base import RawAnnotation

_NON_REGION_TYPES = ("choices", "datetime", "number", "pairwise", "rating", "relation", "taxonomy", "textarea")
"""Results about the whole image, or about two boxes; a team may add tags for its own use."""


def parse_export(
    tasks: Iterable[Any], annotator_name: Callable[[Any], Any], task_url: Callable[[Any], str | None]
) -> list[RawAnnotation]:
    """Every answer of exported tasks: of each annotator the newest to an image that is no skip, else the newest skip.

    Args:
        exported: tasks as ``exportType=JSON`` gives them. Anything may be missing or wrong in them.
        who: name of the annotator, from an annotation's ``completed_by``.
        link: where a person can look at a task, by its id.
    """
    latest: dict[object, RawAnnotation] = {}
    for task in tasks:
        for annotation in _annotations(task):
            raw = _raw_annotation(_mapping(task), annotation, annotator_name, task_url)
            annotator = raw["annotator"] if raw["annotator"] is not None else len(latest)  # nobody twice is two
            key = (repr(raw["image_id"]), repr(annotator))
            if key not in latest or _priority(raw) >= _priority(latest[key]):
                latest[key] = raw
    return list(latest.values())


def _priority(raw: RawAnnotation) -> tuple[bool, str]:
    """Label Studio writes times in one format and in UTC, so they sort as text."""
    return raw["status"] != "skipped", str(raw["finished_at"])


def _annotations(task: Any) -> list[Mapping[str, Any]]:
    """Those of a task; one without content, which the door refuses, stands for what is no list of annotations."""
    found = _mapping(task).get("annotations")
    if isinstance(found, list):
        return [_mapping(annotation) for annotation in found]
    return [{}]


def _raw_annotation(
    task: Mapping[str, Any],
    annotation: Mapping[str, Any],
    annotator_name: Callable[[Any], Any],
    task_url: Callable[[Any], str | None],
) -> RawAnnotation:
    data = _mapping(task.get("data"))
    result = annotation.get("result")
    regions = [_mapping(item) for item in result if _is_region(item)] if isinstance(result, list) else None
    skipped = annotation.get("was_cancelled") is True
    raw = {
        "image_id": data.get("image_id"),
        "status": "skipped" if skipped else "empty" if regions == [] else "labeled",
        "boxes": None if regions is None else [_parse_box(region) for region in regions],
        "annotator": annotator_name(annotation.get("completed_by")),
        "finished_at": annotation.get("updated_at"),
        "seconds_spent": annotation.get("lead_time"),
        "answer_id": annotation.get("unique_id") or annotation.get("id"),
        "url": task_url(task.get("id")),
        "image_sha256": data.get("image_sha256"),
    }
    problem = None if skipped else _size_mismatch(regions or (), data)
    return raw if problem is None else {**raw, "problem": problem}


def _is_region(item: Any) -> bool:
    return _mapping(item).get("type") not in _NON_REGION_TYPES


def _parse_box(region: Mapping[str, Any]) -> dict[str, Any]:
    """Corners in pixels; None where the region is no rectangle or its numbers are none."""
    value = _mapping(region.get("value"))
    return {
        "category": _category(value.get("rectanglelabels")),
        "xyxy_px": _corners(region, value),
        "rotation_deg": _rotation_deg(value.get("rotation"), region.get("image_rotation")),
    }


def _category(names: Any) -> Any:
    """The one name; several, or none, as text the door can show."""
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str):
        return names[0]
    return None if names is None else repr(names)


def _corners(region: Mapping[str, Any], value: Mapping[str, Any]) -> list[float] | None:
    try:
        width_px, height_px = float(region["original_width"]), float(region["original_height"])
        x, y, width, height = (float(value[side]) / 100 for side in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return [x * width_px, y * height_px, (x + width) * width_px, (y + height) * height_px]


def _rotation_deg(*angles: Any) -> Any:
    """Degrees: the first that is not zero, whatever it is."""
    return next((angle for angle in angles if angle not in (None, 0)), 0)


def _size_mismatch(regions: Iterable[Mapping[str, Any]], data: Mapping[str, Any]) -> str | None:
    """Boxes are in percent of the picture the browser had; on another one they mean something else."""
    offered = data.get("width_px"), data.get("height_px")
    for region in regions:
        labeled = region.get("original_width"), region.get("original_height")
        if None not in labeled and labeled != offered:
            return f"the labeled picture is {labeled[0]} x {labeled[1]} px, expected {offered[0]} x {offered[1]}"
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
