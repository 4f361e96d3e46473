"""Recognize an annotation file by its content: JSON and XML by what they begin and end with, labels by their lines."""

import json
import re
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any, get_args

from tasks.data.archives import FileSource
from tasks.data.formats.base import AnnotationFormat
from tasks.data.formats.decoding import decode_text
from tasks.data.formats.dota import is_dota
from tasks.data.formats.ground_truth import ENDINGS as MANIFEST_ENDINGS
from tasks.data.formats.ground_truth import is_manifest_line
from tasks.data.formats.label_studio import is_task
from tasks.data.formats.visdrone import is_visdrone

IMAGE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"}
    | {".gif", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"}
)
"""File name endings that are taken for pictures, in lower case."""
_NAME_LISTS = frozenset({"classes.txt", "obj.names", "names.txt", "predefined_classes.txt"})
_SIDE_FILES = frozenset({"labelmap.txt", "notes.json", "obj.data", "reviewed.csv", "license", "license.txt"})
_SAMPLED = 5
_PEEK_BYTES = 1 << 16
_WHOLE_BYTES = 1 << 20
_LABEL_LINE = re.compile(r"\s*[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?(?:\s+-?[0-9.]+(?:[eE][+-]?[0-9]+)?){4,}\s*")
_TEXT_FORMATS: tuple[AnnotationFormat, ...] = ("yolo", "dota", "visdrone")
"""Formats with one text file per image."""
_OTHER_TOOLS = (
    ("shapes", "imagePath", "labelme JSON"),
    ("assets", "tags", "VoTT JSON"),
    ("asset", "regions", "VoTT JSON"),
)


def is_image(name: str) -> bool:
    """Whether a file is called like a picture."""
    return PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS


def recognize(name: str, head: bytes, tail: bytes, content: bytes | None) -> str:
    """Say what kind of file it is.

    A format, ``yolo_classes``, ``image_list``, ``side`` (known and without annotations), ``blank``,
    ``unsupported:<name>`` or ``other``.

    Args:
        name: of the file.
        head: its first bytes.
        tail: its last bytes.
        content: all of it, where it is short.
    """
    last, suffix = _last(name).lower(), PurePosixPath(name).suffix.lower()
    is_list_of_voc = "imagesets" in (part.lower() for part in PurePosixPath(name).parts[:-1])
    if last in _SIDE_FILES or last.startswith("readme") or is_list_of_voc:
        return "side"
    text = decode_text(head)[0]
    start = text.lstrip()[:1]
    if start == "{" and is_manifest_line(text.lstrip().partition("\n")[0]):
        return "ground_truth"
    if start in ("{", "["):
        return _kind_of_json(text, decode_text(tail)[0], content)
    if start == "<":
        tag = re.search(r"<([A-Za-z_][\w.-]*)", re.sub(r"<[?!][^>]*>|<!--.*?-->", "", text, flags=re.DOTALL))
        return {"annotation": "voc", "annotations": "cvat"}.get(tag.group(1) if tag else "", "other")
    if last in _NAME_LISTS or (suffix in (".yaml", ".yml") and re.search(r"^names\s*:", text, flags=re.MULTILINE)):
        return "yolo_classes"
    if suffix == ".txt":
        lines = [line for line in text.splitlines() if line.strip()]
        if content is None:
            lines = lines[:-1]  # cut through
        if not lines:
            return "blank"
        if all(_LABEL_LINE.fullmatch(line) for line in lines):
            return "yolo"
        if is_dota(lines):
            return "dota"
        if is_visdrone(lines):
            return "visdrone"
        if all(is_image(line.strip()) for line in lines):
            return "image_list"
    return "other"


def _kind_of_json(head: str, tail: str, content: bytes | None) -> str:
    if content is not None:
        try:
            return _kind_of_value(json.loads(decode_text(content)[0]))
        except (ValueError, RecursionError):
            pass  # broken: its beginning says what it was to be
    keys = set(re.findall(r'"([A-Za-z_-]+)"\s*:', head + tail))
    if "source-ref" in keys and "images" not in keys:
        return "ground_truth"
    if head.lstrip().startswith("["):
        if "data" in keys and keys & {"annotations", "completions", "predictions", "file_upload"}:
            return "label_studio"
        return "unsupported:COCO results" if {"image_id", "bbox"} <= keys else "other"
    if "images" in keys or {"annotations", "categories"} <= keys:
        return "coco"
    return _other_tool(keys)


def _kind_of_value(value: Any) -> str:
    if isinstance(value, list):
        if value and is_task(value[0]):
            return "label_studio"
        is_result = bool(value) and isinstance(value[0], dict) and {"image_id", "bbox"} <= value[0].keys()
        return "unsupported:COCO results" if is_result else "other"
    if is_task(value):
        return "label_studio"
    if (
        sum(isinstance(value.get(key), list) for key in ("images", "annotations", "categories")) >= 2
        and "images" in value
    ):
        return "coco"
    return _other_tool(set(value))


def _other_tool(keys: set[str]) -> str:
    return next((f"unsupported:{name}" for one, other, name in _OTHER_TOOLS if {one, other} <= keys), "other")


def classify(source: FileSource) -> dict[str, str]:
    """Say of each file that is no image what kind it is; of many alike beside each other, a few are looked into."""
    pictures = {PurePosixPath(name).stem for name in source.names() if is_image(name)}
    kinds: dict[str, str] = {}
    looked_into: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in source.names():
        if is_image(name):
            continue
        pure = PurePosixPath(name)
        suffix = pure.suffix.lower()
        if suffix not in (".json", ".xml", ".txt", ".yaml", ".yml", ".names", *MANIFEST_ENDINGS):
            kinds[name] = "other"
            continue
        sample = looked_into[str(pure.parent), suffix]
        is_settled = len(sample) >= _SAMPLED and len(set(sample)) == 1 and sample[0] in ("voc", *_TEXT_FORMATS)
        if is_settled and pure.stem in pictures:
            kinds[name] = sample[0]
            continue
        kinds[name] = _look_into(source, name)
        if suffix in (".xml", ".txt") and kinds[name] != "blank":
            sample.append(kinds[name])
    return _with_neighbors(kinds, pictures)


def _with_neighbors(kinds: dict[str, str], pictures: set[str]) -> dict[str, str]:
    """Decide about files that say nothing themselves by their neighbors and by the pictures they are called like.

    A broken file that is called like a picture belongs to it, so that its picture is not taken for a bare one.
    """
    found = set(kinds.values()) & set(get_args(AnnotationFormat))
    text_format_of = {str(PurePosixPath(name).parent): kind for name, kind in kinds.items() if kind in _TEXT_FORMATS}
    text_formats = [kind for kind in _TEXT_FORMATS if kind in found] or ["yolo"]
    decided = {}
    for name, kind in kinds.items():
        pure = PurePosixPath(name)
        has_picture = pure.stem in pictures
        if kind == "blank":
            is_only = len(text_formats) == 1 and found <= set(text_formats)
            kind = text_format_of.get(str(pure.parent), text_formats[0] if has_picture and is_only else "other")
        elif kind == "other" and has_picture:
            of_text = text_format_of.get(str(pure.parent), text_formats[0])
            of_format = {".txt": of_text, ".xml": "voc"}.get(pure.suffix.lower(), "")
            kind = of_format if of_format in found else kind
        decided[name] = kind
    return decided


def _look_into(source: FileSource, name: str) -> str:
    size = source.size(name)
    if size <= _WHOLE_BYTES:
        content = source.read(name)
        return recognize(name, content[:_PEEK_BYTES], content[-_PEEK_BYTES:], content)
    head = source.read(name, _PEEK_BYTES)
    kind = recognize(name, head, b"", None)
    if kind == "other" and head.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"{":
        # The end of a long document says what its beginning, a single list, may not.
        kind = recognize(name, head, source.read(name)[-_PEEK_BYTES:], None)
    return kind


def _last(name: str) -> str:
    return PurePosixPath(name).name.lower()
