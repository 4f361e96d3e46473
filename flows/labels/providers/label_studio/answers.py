"""From Label Studio's JSON export to answers. It checks nothing people draw, and neither does this: the door does.

Its COCO export is not used: there, class ids follow the alphabet, file names are of its own making and our image ids
are gone.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flows.labels.providers.base import Returned

_NOT_DRAWN = ("choices", "datetime", "number", "pairwise", "rating", "relation", "taxonomy", "textarea")
"""Results about the whole image, or about two boxes; a team may add tags for its own use."""


def answers_in(exported: Iterable[Any], who: Callable[[Any], Any], link: Callable[[Any], str | None]) -> list[Returned]:
    """Every answer of exported tasks: of each annotator the newest to an image that is no skip, else the newest skip.

    Args:
        exported: tasks as ``exportType=JSON`` gives them. Anything may be missing or wrong in them.
        who: name of the annotator, from an annotation's ``completed_by``.
        link: where a person can look at a task, by its id.
    """
    newest: dict[object, Returned] = {}
    for task in exported:
        for annotation in _annotations(task):
            answer = _answer(_mapping(task), annotation, who, link)
            author = answer["annotator"] if answer["annotator"] is not None else len(newest)  # nobody twice is two
            of_whom = (repr(answer["image_id"]), repr(author))
            if of_whom not in newest or _standing(answer) >= _standing(newest[of_whom]):
                newest[of_whom] = answer
    return list(newest.values())


def _standing(answer: Returned) -> tuple[bool, str]:
    """Label Studio writes times in one format and in UTC, so they sort as text."""
    return answer["status"] != "skipped", str(answer["finished_at"])


def _annotations(task: Any) -> list[Mapping[str, Any]]:
    """Those of a task; one without content, which the door refuses, stands for what is no list of annotations."""
    found = _mapping(task).get("annotations")
    if isinstance(found, list):
        return [_mapping(annotation) for annotation in found]
    return [{}]


def _answer(
    task: Mapping[str, Any], annotation: Mapping[str, Any], who: Callable[[Any], Any], link: Callable[[Any], str | None]
) -> Returned:
    data = _mapping(task.get("data"))
    result = annotation.get("result")
    regions = [_mapping(item) for item in result if _is_drawn(item)] if isinstance(result, list) else None
    skipped = annotation.get("was_cancelled") is True
    answer = {
        "image_id": data.get("image_id"),
        "status": "skipped" if skipped else "empty" if regions == [] else "labeled",
        "boxes": None if regions is None else [_box(region) for region in regions],
        "annotator": who(annotation.get("completed_by")),
        "finished_at": annotation.get("updated_at"),
        "seconds_spent": annotation.get("lead_time"),
        "answer_id": annotation.get("unique_id") or annotation.get("id"),
        "link": link(task.get("id")),
        "image_sha256": data.get("image_sha256"),
    }
    problem = None if skipped else _other_picture(regions or (), data)
    return answer if problem is None else {**answer, "problem": problem}


def _is_drawn(item: Any) -> bool:
    return _mapping(item).get("type") not in _NOT_DRAWN


def _box(region: Mapping[str, Any]) -> dict[str, Any]:
    """Corners in pixels; None where the region is no rectangle or its numbers are none."""
    value = _mapping(region.get("value"))
    return {
        "category": _category(value.get("rectanglelabels")),
        "xyxy_px": _corners(region, value),
        "rotation_deg": _turned(value.get("rotation"), region.get("image_rotation")),
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


def _turned(*angles: Any) -> Any:
    """Degrees: the first that is not zero, whatever it is."""
    return next((angle for angle in angles if angle not in (None, 0)), 0)


def _other_picture(regions: Iterable[Mapping[str, Any]], data: Mapping[str, Any]) -> str | None:
    """Boxes are in percent of the picture the browser had; on another one they mean something else."""
    offered = data.get("width_px"), data.get("height_px")
    for region in regions:
        seen = region.get("original_width"), region.get("original_height")
        if None not in seen and seen != offered:
            return f"the labeled picture is {seen[0]} x {seen[1]} px, expected {offered[0]} x {offered[1]}"
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
