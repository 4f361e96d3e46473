"""Read and write COCO JSON: ``images``, ``annotations`` (bbox = x, y, width, height, 0-based) and ``categories``.

Ids are compared leniently (``1``, ``1.0``, ``"1"``), ids of annotations are not needed, and whatever tools leave blank
may be blank. An image may carry ``reviewed``, ``status``, ``annotator``, ``finished_at``, ``seconds_spent``, ``sha256``
and ``image_id``, and the document a list ``reviewed`` of ids or names: a person's statement that it is finished.
"""

import gc
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ijson  # type: ignore[import-untyped]

from tasks.data.errors import UnsupportedFormatError
from tasks.data.formats.base import (
    STATUSES,
    EntryProblem,
    ParsedBox,
    ParsedClass,
    ParsedDocument,
    ParsedImage,
    Status,
    class_name_problem,
    near_equal_names,
)
from tasks.data.formats.box_table import CROWD, IGNORED, STATED, BoxTableBuilder
from tasks.data.formats.coco_shapes import coco_shape
from tasks.data.formats.decoding import parse_json, shown, to_flag, to_float, to_id, to_size
from tasks.data.formats.writing import plain_boxes

_LISTS = ("images", "annotations", "categories")
_NAMED_ALIKE = ("path", "coco_url", "flickr_url")
"""Keys of an image that may hold another name of it."""
_LARGEST = 1e15
"""Of a number in the plain case; larger ones, NaN and infinity go the long way."""

_IN_PIECES_FROM_BYTES = 1 << 24
"""Of larger documents, annotations are read one by one: as objects all at once they would take ten times the bytes."""
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*(?=\[)')
_END_OF_LIST = re.compile(rb"\}\s*\](?=\s*(?:\}\s*\Z|,\s*\"[^\"\\]{0,100}\"\s*:))")
"""Where the list may end: the document's end or another key follows. A list inside of it may look alike."""
_HALF_LETTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of an escaped letter beyond U+FFFF. Alone, ``json`` and ``ijson`` read it differently."""

Id = int | str


def parse_coco(content: bytes, where: str) -> ParsedDocument:
    """Read a COCO document.

    Args:
        content: of the file.
        where: the file's name, for messages.

    Raises:
        TruncatedFileError: it ends too early.
        UnsupportedFormatError: it is no COCO document.
    """
    with _without_garbage_collection():
        in_pieces = _read_in_pieces(content, where) if len(content) >= _IN_PIECES_FROM_BYTES else None
        if in_pieces is not None:
            return in_pieces
        document, guessed = parse_json(content, where, "COCO")
        if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in _LISTS):
            expected = f"an object with the lists {', '.join(_LISTS)}"
            raise UnsupportedFormatError(where, f"the JSON is {_summary(document)}, expected {expected}")
        reader = _Reader(where, document)
        return reader.read(guessed)


def _read_in_pieces(content: bytes, where: str) -> ParsedDocument | None:
    """Read a document with its annotations one by one; None where it must be read as a whole.

    The list is cut out where it seems to begin and end, and a mark put in its place. If what remains is a document with
    the mark as its annotations, and the list is one by itself, the cut was right: ``json.loads`` would read the same.
    """
    begin = _ANNOTATIONS.search(content)
    end = None if begin is None else _END_OF_LIST.search(content, begin.end())
    if begin is None or end is None or _HALF_LETTER.search(content, begin.end(), end.end()):
        return None
    mark = uuid.uuid4().hex
    try:
        document = json.loads((content[: begin.end()] + f'"{mark}"'.encode() + content[end.end() :]).decode("utf-8"))
        if not isinstance(document, dict) or document.get("annotations") != mark:
            return None
        if not all(isinstance(document.get(key), list) for key in ("images", "categories")):
            return None
        section = _Section(content, begin.end(), end.end())
        document["annotations"] = ijson.items(section, "item", use_float=True, buf_size=1 << 20)
        return _Reader(where, document).read(None)
    except (ValueError, RecursionError, ijson.JSONError):
        return None


class _Section:
    """A part of a document's bytes as a file, without a copy of it."""

    def __init__(self, content: bytes, start: int, stop: int) -> None:
        self._rest = memoryview(content)[start:stop]

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        size = len(self._rest) if size < 0 else size
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)


class _Reader:
    """One document on its way into columns; its entries are freed as they are read."""

    def __init__(self, where: str, document: dict[str, Any]) -> None:
        self._where, self._document = where, document
        self._notes: list[EntryProblem] = []
        self._problems: list[EntryProblem] = []
        self._strays: list[EntryProblem] = []
        self._boxes = BoxTableBuilder("annotations[{}]")

    def read(self, guessed: str | None) -> ParsedDocument:
        document = self._document
        if guessed:
            self._notes.append(EntryProblem(self._where, f"the text is no UTF-8, read as {guessed}"))
        classes, names, written = self._classes(document["categories"])
        images, row_of, repeated = self._images(document.pop("images"))
        self._annotations(document.pop("annotations"), row_of, names)
        table, slices = self._boxes.build(len(images))
        used = set(table.categories)
        info = document.get("info")
        author = _text(info.get("annotator")) if isinstance(info, Mapping) else None
        reviewed = _reviewed(document.get("reviewed"))
        return ParsedDocument(
            format="coco",
            where=self._where,
            classes=tuple(_without_used_groups(classes, used)),
            images=tuple(
                _image(entry, position, boxes, problems, self._where, author, reviewed)
                for (entry, position, problems), boxes in zip(images, slices, strict=True)
            ),
            problems=tuple(self._problems),
            strays=tuple(self._strays),
            notes=tuple(self._notes),
            images_repeated=repeated,
            near_equal_names=near_equal_names(written),
            annotator=author,
        )

    def _classes(self, entries: list[Any]) -> tuple[list[ParsedClass], dict[Id, str], list[str]]:
        """Classes, their names by id, and the names as written. An id with two names means nothing."""
        found: dict[Id, str] = {}
        written: list[str] = []
        clashing: set[Id] = set()
        above: set[str] = set()
        below: set[str] = set()
        for position, entry in enumerate(entries):
            key, name, problem = _class_of(entry)
            if key is None or name is None or problem:
                self._problems.append(EntryProblem(f"{self._where}: categories[{position}]", problem or "no id"))
                continue
            written.append(name)
            name = name.strip()
            if found.setdefault(key, name) != name:
                clashing.add(key)
            parent = entry.get("supercategory")
            if isinstance(parent, str) and parent.strip() and parent.strip() != name:
                above.add(parent.strip())
                if parent.strip().lower() != "none":
                    below.add(name)
        for key in sorted(clashing, key=str):
            problem = f"category id {shown(key)} has several names, expected one"
            self._problems.append(EntryProblem(f"{self._where}: categories", problem))
            del found[key]
        classes = [ParsedClass(key, name, is_group=name in above and name not in below) for key, name in found.items()]
        return classes, found, written

    def _images(self, entries: list[Any]) -> tuple[list[tuple[Any, int, list[str]]], dict[Id, int], int]:
        """Entries with position and problems, the row of each id, and how many were listed twice alike."""
        rows: list[tuple[Any, int, list[str]]] = []
        row_of: dict[Id, int] = {}
        row_of_name: dict[str, int] = {}
        repeated = 0
        for position, entry in enumerate(entries):
            problems: list[str] = []
            key = to_id(entry.get("id")) if isinstance(entry, dict) else None
            name = _file_name(entry)
            if not isinstance(entry, dict):
                problems.append(f"the entry is {shown(entry)}, expected an image")
            elif name is None:
                problems.append(f"file_name is {shown(entry.get('file_name'))}, expected the name of a file")
            elif key is None:
                problems.append(f"id is {shown(entry.get('id'))}, expected a number or text")
            else:
                known = row_of.setdefault(key, len(rows))
                if known != len(rows) and rows[known][0] == entry:
                    repeated += 1
                    self._notes.append(EntryProblem(f"{self._where}: images[{position}]", "listed again word for word"))
                    continue
                if known != len(rows):
                    _clash(rows[known][2], problems, f"image id {shown(key)} stands for several images, expected one")
                other = row_of_name.setdefault(name, len(rows))
                if other != len(rows) and other != known:
                    _clash(rows[other][2], problems, "the file name stands under several image ids, expected one")
            rows.append((entry, position, problems))
        return rows, row_of, repeated

    def _annotations(self, entries: Iterable[Any], row_of: Mapping[Id, int], names: Mapping[Id, str]) -> None:
        add = self._boxes.add
        for position, entry in enumerate(_freed(entries) if isinstance(entries, list) else entries):
            # The plain case first; everything else goes the long way.
            if type(entry) is dict and not entry.get("segmentation") and not _is_rotated(entry.get("attributes")):
                image_id, category_id, bbox = entry.get("image_id"), entry.get("category_id"), entry.get("bbox")
                if type(image_id) is int and type(category_id) is int and type(bbox) is list and len(bbox) == 4:
                    row, name = row_of.get(image_id), names.get(category_id)
                    x, y, width, height = bbox
                    if (
                        row is not None
                        and name is not None
                        and entry.get("iscrowd", 0) == 0
                        and entry.keys().isdisjoint(("ignore", "score"))
                        and type(x) in _NUMBERS
                        and type(y) in _NUMBERS
                        and type(width) in _NUMBERS
                        and type(height) in _NUMBERS
                        and -_LARGEST < x < _LARGEST
                        and -_LARGEST < y < _LARGEST
                        and -_LARGEST < width < _LARGEST
                        and -_LARGEST < height < _LARGEST
                        and (x + width > 1 or y + height > 1)
                    ):
                        add(row, position, name, (x, y, x + width, y + height))
                        continue
            self._add_slowly(entry, position, row_of, names)

    def _add_slowly(self, entry: Any, position: int, row_of: Mapping[Id, int], names: Mapping[Id, str]) -> None:
        image_id = to_id(entry.get("image_id")) if isinstance(entry, dict) else None
        row = row_of.get(image_id) if image_id is not None else None
        if row is None:
            stated = shown(entry.get("image_id")) if isinstance(entry, dict) else shown(entry)
            problem = f"image_id is {stated}, expected the id of an image in the file"
            self._strays.append(EntryProblem(f"{self._where}: annotations[{position}]", problem))
            return
        category_id = to_id(entry.get("category_id"))
        name = names.get(category_id) if category_id is not None else None
        if name is None:
            expected = f"expected one of {shown(sorted(names, key=str)[:20])}"
            problem = f"category_id is {shown(entry.get('category_id'))}, {expected}"
            self._boxes.add_broken(row, position, problem)
            return
        shape = coco_shape(entry)
        crowd, ignored = to_flag(entry.get("iscrowd")), to_flag(entry.get("ignore"))
        if isinstance(shape, str):
            self._boxes.add_broken(row, position, shape, name)
        elif crowd is None:
            problem = f"iscrowd is {shown(entry.get('iscrowd'))}, expected 0 or 1"
            self._boxes.add_broken(row, position, problem, name)
        else:
            corners, kind, rotation, is_stated = shape
            flags = CROWD * crowd | IGNORED * bool(ignored) | STATED * is_stated
            score = to_float(entry.get("score"))
            self._boxes.add(row, position, name, corners, kind=kind, flags=flags, rotation_deg=rotation, score=score)


_NUMBERS = frozenset({int, float})


def _freed(entries: list[Any]) -> Iterator[Any]:
    """Yield the entries, and forget each in the list."""
    for position, entry in enumerate(entries):
        entries[position] = None
        yield entry


def _is_rotated(attributes: Any) -> bool:
    """Whether the attributes of a box may say that it is rotated."""
    return attributes is not None and not (type(attributes) is dict and not attributes.get("rotation"))


def _class_of(entry: Any) -> tuple[Id | None, str | None, str | None]:
    """Id, name as written and problem of a category."""
    if not isinstance(entry, dict):
        return None, None, f"the category is {shown(entry)}, expected an object with id and name"
    key, name = to_id(entry.get("id")), entry.get("name")
    if key is None:
        return None, None, f"the category id is {shown(entry.get('id'))}, expected a number or text"
    if isinstance(name, int | float) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str):
        return key, None, f"the class name is {shown(name)}, expected text"
    return key, name, class_name_problem(name.strip())


def _file_name(entry: Any) -> str | None:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    return name if isinstance(name, str) and name.strip() else None


def _clash(one: list[str], other: list[str], problem: str) -> None:
    for problems in (one, other):
        if problem not in problems:
            problems.append(problem)


def _without_used_groups(classes: list[ParsedClass], used: set[str]) -> Iterator[ParsedClass]:
    """A group that boxes are drawn for is a class like any other."""
    for known in classes:
        yield ParsedClass(known.id, known.name) if known.is_group and known.name in used else known


def _image(
    entry: Any,
    position: int,
    boxes: Any,
    problems: list[str],
    where: str,
    author: str | None,
    reviewed: set[Any],
) -> ParsedImage:
    label = f"{where}: images[{position}]"
    if not isinstance(entry, dict):
        return ParsedImage("", label, boxes, problems=tuple(problems))
    width_px, height_px, size_problem = to_size(entry.get("width"), entry.get("height"))
    name = _file_name(entry) or ""
    status, status_problem = _status(entry, bool(len(boxes)), reviewed, name)
    extra = entry.get("extra")
    other = [entry.get(key) for key in _NAMED_ALIKE] + [extra.get("name") if isinstance(extra, Mapping) else None]
    return ParsedImage(
        name=name,
        entry=label,
        boxes=boxes,
        alternative_names=tuple(text for text in other if isinstance(text, str) and text),
        image_id=_text(entry.get("image_id")),
        width_px=width_px,
        height_px=height_px,
        status=status,
        annotator=_text(entry.get("annotator")) or author,
        finished_at=_text(entry.get("finished_at")),
        seconds_spent=to_float(entry.get("seconds_spent")),
        sha256=_text(entry.get("sha256")),
        problems=(*problems, *(text for text in (size_problem, status_problem) if text)),
    )


def _status(
    entry: Mapping[str, Any], has_boxes: bool, reviewed: set[Any], name: str
) -> tuple[Status | None, str | None]:
    """What the document says of the person's work, and a problem with it."""
    stated = entry.get("status")
    if stated in STATUSES:
        return stated, None
    if stated not in (None, ""):
        return None, f"status is {shown(stated)}, expected one of {', '.join(STATUSES)}"
    if entry.get("reviewed") is True or not reviewed.isdisjoint({to_id(entry.get("id")), name}):
        return ("labeled" if has_boxes else "empty"), None
    return None, None


def _reviewed(entries: Any) -> set[Any]:
    if not isinstance(entries, list):
        return set()
    texts = {entry for entry in entries if isinstance(entry, str)}
    return texts | {key for entry in entries if (key := to_id(entry)) is not None}


def _text(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def _summary(document: Any) -> str:
    if isinstance(document, dict):
        return f"an object with {shown(list(document)[:6])}"
    return f"a {type(document).__name__}"


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Millions of new objects would be searched for cycles again and again; JSON has none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def write_coco(document: ParsedDocument) -> bytes:
    """Write a document as COCO JSON.

    Raises:
        UnsupportedFormatError: an entry or a box has a problem, or a box is of another shape than a box.
    """
    names = document.class_names
    id_of = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(document.images, start=1):
        images.append(_image_entry(number, image))
        for box in plain_boxes(image, id_of, allow_crowd=True):
            annotations.append(_box_entry(len(annotations) + 1, number, box, id_of))
    content: dict[str, Any] = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in id_of.items()],
    }
    if document.annotator:
        content = {"info": {"annotator": document.annotator}, **content}
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _image_entry(number: int, image: ParsedImage) -> dict[str, Any]:
    optional = {
        "width": image.width_px,
        "height": image.height_px,
        "image_id": image.image_id,
        "status": image.status,
        "annotator": image.annotator,
        "finished_at": image.finished_at,
        "seconds_spent": image.seconds_spent,
        "sha256": image.sha256,
    }
    return {
        "id": number,
        "file_name": image.name,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _box_entry(number: int, image: int, box: ParsedBox, id_of: Mapping[str, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = box.xyxy
    width, height = x2 - x1, y2 - y1
    entry: dict[str, Any] = {
        "id": number,
        "image_id": image,
        "category_id": id_of[box.category or ""],
        "bbox": [x1, y1, width, height],
        "area": width * height,
        "iscrowd": int(box.is_crowd),
    }
    if box.is_ignored:
        entry["ignore"] = 1
    if box.doubt is not None:
        entry["doubt"] = box.doubt
    if box.runner_up is not None:
        entry["runner_up"] = {"category": box.runner_up[0], "score": box.runner_up[1]}
    if box.attributes is not None:
        entry["attributes"] = dict(box.attributes)
    return entry if box.score is None else {**entry, "score": box.score}
