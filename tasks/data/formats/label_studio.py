"""Read and write Label Studio's JSON export: tasks with annotations and predictions, regions in percent.

An image of the document is one annotator's answer to a task: submitted with regions (``labeled``), without any
(``empty``) or skipped. A task without an answer is listed and says nothing. A region turned by 360 degrees is not
turned; the pivot of a turn is the region's upper left corner. Regions are the results that have a place on the image;
choices, texts, ratings and relations are passed over.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.data.errors import UnsupportedFormatError
from tasks.data.formats.base import (
    NO_CORNERS,
    Corners,
    EntryProblem,
    ParsedBox,
    ParsedDocument,
    ParsedImage,
    Status,
    class_name_problem,
    near_equal_names,
    numbered_classes,
)
from tasks.data.formats.box_table import ImageTableBuilder
from tasks.data.formats.decoding import parse_json, shown, to_float, to_id, to_size
from tasks.data.formats.shapes import (
    brush_bounds,
    ellipse_bounds,
    is_rectangle,
    is_upright,
    point_bounds,
    rotated_bounds,
)
from tasks.data.formats.writing import plain_boxes, required_size

_EXPECTED = "a Label Studio export (JSON)"
_NOT_DRAWN = frozenset(
    {"choices", "datetime", "number", "pairwise", "rating", "relation", "taxonomy", "textarea", "ranker", "chat"}
)
"""Results about the whole image, or about two regions."""
_BARE = ("rectangle", "polygon", "ellipse", "brush", "keypoint")
"""Shapes whose label is a result of its own."""
_GEOMETRY = ("x", "y", "width", "height", "points", "rle", "radiusX", "vertices")
_LABEL_KEYS = ("rectanglelabels", "polygonlabels", "brushlabels", "ellipselabels", "labels", "keypointlabels")
_IMAGE_KEYS = ("image", "img", "url", "photo", "picture")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".heic", ".jfif")


def parse_label_studio(content: bytes, where: str) -> ParsedDocument:
    """Read an export (JSON, or the flat JSON-MIN).

    Raises:
        TruncatedFileError: it ends too early.
        UnsupportedFormatError: it is no export of Label Studio.
    """
    document, guessed = parse_json(content, where, _EXPECTED)
    tasks = [document] if isinstance(document, dict) else document
    if not isinstance(tasks, list) or not (not tasks or any(is_task(task) for task in tasks)):
        raise UnsupportedFormatError(where, f"the JSON is {shown(document)}, expected {_EXPECTED}")
    notes = [EntryProblem(where, f"the text is no UTF-8, read as {guessed}")] if guessed else []
    return parse_tasks(tasks, where, notes)


def parse_tasks(tasks: Sequence[Any], where: str, notes: Sequence[EntryProblem] = ()) -> ParsedDocument:
    """Read tasks as Label Studio's interface returns them; anything may be missing or wrong in them."""
    images = ImageTableBuilder("result[{}]")
    written: dict[str, None] = {}
    for position, task in enumerate(tasks):
        for image in _answers(task, f"{where}: tasks[{position}]"):
            written.update(dict.fromkeys(box.category for box in image.boxes if box.category is not None))
            images.add(image)
    return ParsedDocument(
        format="label_studio",
        where=where,
        classes=numbered_classes(written),
        images=images.build(),
        notes=tuple(notes),
        near_equal_names=near_equal_names(written),
    )


def is_task(task: Any) -> bool:
    """Whether a JSON value looks like a task of Label Studio."""
    if not isinstance(task, Mapping):
        return False
    if isinstance(task.get("data"), Mapping):
        return any(key in task for key in ("annotations", "completions", "predictions", "id"))
    return "annotation_id" in task or ("lead_time" in task and "annotator" in task)


def _answers(task: Any, where: str) -> Iterator[ParsedImage]:
    """The answers to a task, or the task itself where nobody has answered."""
    if not isinstance(task, Mapping):
        yield ParsedImage("", where, problems=(f"the task is {shown(task)}, expected an object",))
        return
    nested = task.get("data")
    data: Mapping[str, Any] = nested if isinstance(nested, Mapping) else task
    name, others = _names(task, data)
    listed = ParsedImage(
        name=name or "",
        entry=where,
        alternative_names=others,
        image_id=_text(data.get("image_id")),
        sha256=_text(data.get("image_sha256")),
        task_id=_text(task.get("id")),
        problems=() if name else ("the task names no image, expected one in its data",),
    )
    predicted = tuple(box for item in _list(task.get("predictions")) for box in _predicted(item))
    annotations = task.get("annotations", task.get("completions"))
    if annotations is None and data is task:
        annotations = [_flat(task)]
    if annotations not in (None, []) and not isinstance(annotations, list):
        problem = f"annotations is {shown(annotations)}, expected a list"
        yield _with(listed, data, (), predicted, problems=(problem,))
    elif not annotations:
        yield _with(listed, data, (), predicted)
    else:
        for number, annotation in enumerate(annotations):
            yield _answer(listed, data, annotation, number, predicted)


def _flat(task: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of JSON-MIN, whose regions lie in the task itself."""
    regions = [
        {"type": key, "value": region, **{k: region.get(k) for k in ("original_width", "original_height")}}
        for value in task.values()
        for region in _list(value)
        if isinstance(region, Mapping)
        for key in region
        if key in _LABEL_KEYS
    ]
    known = {key: task.get(key) for key in ("updated_at", "lead_time")}
    return {"result": regions, "completed_by": task.get("annotator"), "id": task.get("annotation_id"), **known}


def _answer(
    listed: ParsedImage, data: Mapping[str, Any], annotation: Any, number: int, predicted: tuple[ParsedBox, ...]
) -> ParsedImage:
    entry = f"{listed.entry}.annotations[{number}]"
    if not isinstance(annotation, Mapping):
        problem = f"the annotation is {shown(annotation)}, expected an object"
        return _with(listed, data, (), predicted, entry=entry, problems=(problem,))
    results = annotation.get("result")
    is_skipped = annotation.get("was_cancelled") is True
    boxes = () if is_skipped or not isinstance(results, list) else tuple(_boxes(results))
    problems: tuple[str, ...] = ()
    if not is_skipped and not isinstance(results, list):
        problems = (f"result is {shown(results)}, expected a list",)
    status: Status | None = "skipped" if is_skipped else None if problems else "labeled" if boxes else "empty"
    return _with(
        listed,
        data,
        results if isinstance(results, list) else (),
        predicted,
        entry=entry,
        boxes=boxes,
        status=status,
        annotator=_annotator(annotation.get("completed_by")),
        finished_at=_text(annotation.get("updated_at")) or _text(annotation.get("created_at")),
        seconds_spent=to_float(annotation.get("lead_time")),
        annotation_id=_text(annotation.get("unique_id")) or _text(annotation.get("id")),
        problems=problems,
    )


def _with(
    listed: ParsedImage,
    data: Mapping[str, Any],
    results: Sequence[Any],
    predicted: tuple[ParsedBox, ...],
    *,
    problems: tuple[str, ...] = (),
    **changes: Any,
) -> ParsedImage:
    """The task's image with an answer, and the size that the regions or the task state."""
    width_px, height_px, size_problem = _size(results)
    if width_px is None and size_problem is None:
        width_px, height_px, size_problem = to_size(data.get("width_px"), data.get("height_px"))
    found = (*listed.problems, *problems, *((size_problem,) if size_problem else ()))
    values = {name: getattr(listed, name) for name in ParsedImage.__dataclass_fields__}
    values.update(changes, width_px=width_px, height_px=height_px, predicted=predicted, problems=found)
    return ParsedImage(**values)


def _size(results: Sequence[Any]) -> tuple[int | None, int | None, str | None]:
    sizes: dict[tuple[int, int], None] = {}
    for result in results:
        if isinstance(result, Mapping) and _is_region(result):
            width_px, height_px, problem = to_size(result.get("original_width"), result.get("original_height"))
            if problem:
                return None, None, problem
            if width_px and height_px:
                sizes[width_px, height_px] = None
    if len(sizes) > 1:
        return None, None, f"the regions state several image sizes, {shown(list(sizes))}, expected one"
    width_px, height_px = next(iter(sizes), (None, None))
    return width_px, height_px, None


def _predicted(prediction: Any) -> Iterator[ParsedBox]:
    if isinstance(prediction, Mapping) and isinstance(prediction.get("result"), list):
        yield from _boxes(prediction["result"])


def _is_region(result: Any) -> bool:
    if not isinstance(result, Mapping):
        return True  # named as broken
    value = result.get("value")
    if str(result.get("type")) in _NOT_DRAWN:
        return False
    return not isinstance(value, Mapping) or any(key in value for key in _GEOMETRY)


def _boxes(results: Sequence[Any]) -> Iterator[ParsedBox]:
    """The regions; a shape and its label, which some configurations write as two results of one id, are one."""
    labeled = {
        _text(result["id"])
        for result in results
        if isinstance(result, Mapping) and _text(result.get("id")) and _labels(result) is not None
    }
    for position, result in enumerate(results):
        if not _is_region(result):
            continue
        is_shape_only = (
            isinstance(result, Mapping) and result.get("type") in _BARE and _text(result.get("id")) in labeled
        )
        if not is_shape_only:
            yield _box(result, f"result[{position}]")


def _labels(result: Mapping[str, Any]) -> list[Any] | None:
    """Names chosen for a region; None: it is of a kind without names."""
    value = result.get("value")
    if not isinstance(value, Mapping):
        return None
    keys = [str(result.get("type")), *_LABEL_KEYS]
    return next((value[key] for key in keys if isinstance(value.get(key), list)), None)


def _box(result: Any, entry: str) -> ParsedBox:
    value = result.get("value") if isinstance(result, Mapping) else None
    if not isinstance(value, Mapping):
        return ParsedBox(None, NO_CORNERS, entry=entry, problem=f"the result is {shown(result)}, expected a region")
    names = _labels(result) or []
    if len(names) != 1 or not isinstance(names[0], str):
        problem = f"the labels of the region are {shown(names)}, expected one"
        return ParsedBox(None, NO_CORNERS, entry=entry, problem=problem)
    category = names[0].strip()
    found = class_name_problem(category) or _shape(result, value, category, entry)
    return found if isinstance(found, ParsedBox) else ParsedBox(category, NO_CORNERS, entry=entry, problem=found)


def _shape(result: Mapping[str, Any], value: Mapping[str, Any], category: str, entry: str) -> ParsedBox | str:
    """The box of a region in pixels, or the problem with it."""
    turned = to_float(result.get("image_rotation") or 0)
    if turned is None or math.fmod(turned, 360):
        return f"the image was turned by {shown(result.get('image_rotation'))} degrees in the editor, expected 0"
    width_px, height_px, problem = to_size(result.get("original_width"), result.get("original_height"))
    if width_px is None or height_px is None:
        return problem or "original_width and original_height are missing, expected the image's size in pixels"
    angle = to_float(value.get("rotation") or 0)
    if angle is None or not math.isfinite(angle):
        return f"rotation is {shown(value.get('rotation'))}, expected degrees"
    score = to_float(result.get("score"))
    size = (width_px, height_px)
    if "rle" in value:
        bounds = brush_bounds(value["rle"], *size)
        return (
            "the brush mask is unreadable or blank, expected one"
            if bounds is None
            else ParsedBox(category, bounds, "rle", False, score=score, entry=entry)
        )
    if "points" in value:
        return _polygon(value["points"], size, category, entry)
    if "radiusX" in value:
        numbers = _in_pixels(value, ("x", "y", "radiusX", "radiusY"), size)
        if isinstance(numbers, str):
            return numbers
        return ParsedBox(category, ellipse_bounds(*numbers, angle), "ellipse", False, score=score, entry=entry)
    if "width" not in value or str(result.get("type", "")).startswith("keypoint"):
        return f"the region is of type {shown(result.get('type'))}, expected a rectangle"
    numbers = _in_pixels(value, ("x", "y", "width", "height"), size)
    if isinstance(numbers, str):
        return numbers
    x, y, width, height = numbers
    bounds = rotated_bounds((x, y, x + width, y + height), angle, pivot=(x, y))
    if is_upright(angle):
        return ParsedBox(category, bounds, score=score, entry=entry)
    return ParsedBox(category, bounds, "rotated", False, angle, score=score, entry=entry)


def _in_pixels(value: Mapping[str, Any], keys: Sequence[str], size: tuple[int, int]) -> Corners | str:
    """Four percentages as pixels: two along the width and the height in turn."""
    numbers = [to_float(value.get(key)) for key in keys]
    first, second, third, fourth = (math.nan if number is None else number for number in numbers)
    if not all(map(math.isfinite, (first, second, third, fourth))):
        return f"{', '.join(keys)} are {shown([value.get(key) for key in keys])}, expected percentages"
    width_px, height_px = size
    return first * width_px / 100, second * height_px / 100, third * width_px / 100, fourth * height_px / 100


def _polygon(values: Any, size: tuple[int, int], category: str, entry: str) -> ParsedBox | str:
    points = []
    for pair in _list(values):
        numbers = [to_float(number) for number in pair] if isinstance(pair, list | tuple) else []
        if len(numbers) != 2 or any(number is None or not math.isfinite(number) for number in numbers):
            return f"a point of the polygon is {shown(pair)}, expected two percentages"
        points.append(((numbers[0] or 0.0) * size[0] / 100, (numbers[1] or 0.0) * size[1] / 100))
    if len(points) < 3:
        return f"the polygon has {len(points)} points, expected 3 or more"
    kind = "box" if is_rectangle(points) else "polygon"
    return ParsedBox(category, point_bounds(points), kind, False, entry=entry)  # type: ignore[arg-type]


def _names(task: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The image's name, and others the task has for it."""
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value.strip()}
    keys = [key for key in _IMAGE_KEYS if key in texts]
    keys += [key for key, text in texts.items() if text.split("?")[0].lower().endswith(_IMAGE_ENDINGS)]
    found = [texts[key] for key in dict.fromkeys(keys)]
    upload = task.get("file_upload")
    if isinstance(upload, str) and upload.strip():
        found.append(upload)
    return (found[0] if found else None), tuple(found[1:])


def _annotator(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return next((text for key in ("email", "username", "id") if (text := _text(value.get(key)))), None)
    return _text(value)


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value if value.strip() else None
    number = to_id(value)
    return None if number is None else str(number)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def write_label_studio(document: ParsedDocument) -> bytes:
    """Write a document as a Label Studio export; images without a status become tasks nobody has answered.

    Raises:
        UnsupportedFormatError: an entry or a box has a problem, a box is of another shape than a box, or an image's
            size is unknown.
    """
    known = {name: number for number, name in enumerate(document.class_names)}
    tasks = []
    for number, image in enumerate(document.images, start=1):
        width_px, height_px = required_size(image)
        data = {"image": image.name, "width_px": width_px, "height_px": height_px}
        data |= {key: value for key, value in (("image_id", image.image_id), ("image_sha256", image.sha256)) if value}
        results = [_region(box, k, width_px, height_px) for k, box in enumerate(plain_boxes(image, known), start=1)]
        annotation = {
            "id": number,
            "completed_by": image.annotator,
            "result": results,
            "was_cancelled": image.status == "skipped",
            "updated_at": image.finished_at,
            "lead_time": image.seconds_spent,
        }
        is_answered = image.status is not None or bool(results)
        tasks.append({"id": number, "data": data, "annotations": [annotation] if is_answered else []})
    return json.dumps(tasks, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _region(box: ParsedBox, number: int, width_px: int, height_px: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box.xyxy
    sides = {"x": x1 / width_px, "y": y1 / height_px, "width": (x2 - x1) / width_px, "height": (y2 - y1) / height_px}
    region: dict[str, Any] = {
        "id": f"box-{number}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width_px,
        "original_height": height_px,
        "image_rotation": 0,
        "value": {**{k: v * 100 for k, v in sides.items()}, "rotation": 0, "rectanglelabels": [box.category]},
    }
    return region if box.score is None else {**region, "score": box.score}
