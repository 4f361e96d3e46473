"""Any document built from valid and broken parts is read without a traceback, and its accounts balance.

``GLEANER_EXAMPLES`` sets the number of examples of each test; the usual number keeps the suite short.
"""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.errors import TruncatedFileError, UnsupportedFormatError
from tasks.data.formats.base import ParsedBox, ParsedClass, ParsedDocument, ParsedImage, Status
from tasks.data.formats.coco import parse_coco, write_coco
from tasks.data.formats.cvat import parse_cvat, write_cvat
from tasks.data.formats.dota import parse_dota_files
from tasks.data.formats.ground_truth import parse_ground_truth, write_ground_truth
from tasks.data.formats.label_studio import parse_label_studio, write_label_studio
from tasks.data.formats.visdrone import parse_visdrone_files
from tasks.data.formats.voc import parse_voc_files, write_voc
from tasks.data.formats.yolo import YoloClasses, parse_yolo_classes, parse_yolo_files, write_yolo

EXAMPLES = settings(max_examples=int(os.environ.get("GLEANER_EXAMPLES", "100")), deadline=None)

# --- parts, some of them broken -----------------------------------------------------------------------------------

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ids = st.sampled_from([0, 1, 2, 3, "1", "2", " 3 ", 1.0, 2.0, "a"])
numbers = st.floats(0, 120, width=32) | st.integers(0, 120) | st.sampled_from(["12", "3.5", 0.25, -4, 1e-6])
names = st.sampled_from(["bolt", "nut", "Bolt", "bolt ", "no", "螺栓 🔩", "a: b", 3])
file_names = st.sampled_from([f"{folder}p{n}.jpg" for folder in ("", "day/", "..\\up\\") for n in range(4)])
sizes = st.sampled_from([96, 72, "96", 96.0, 0, "", None])
polygons = st.lists(st.lists(numbers, min_size=0, max_size=9), max_size=2)
run_lengths = st.fixed_dictionaries({"size": st.just([4, 5]), "counts": st.lists(st.integers(0, 9), max_size=6)})
masks = st.fixed_dictionaries({"size": st.lists(st.integers(-1, 9), max_size=3), "counts": st.text(max_size=6)})


def entry(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[Any]:
    """An object of an export: mostly whole, sometimes with a key missing or replaced, seldom anything at all."""
    whole = st.fixed_dictionaries(required, optional=optional)
    keys = sorted({*required, *optional})

    def broken(value: dict[str, Any], key: str, other: Any) -> dict[str, Any]:
        return {**value, key: other} if other is not None else {k: v for k, v in value.items() if k != key}

    return st.one_of(whole, whole, whole, st.builds(broken, whole, st.sampled_from(keys), junk), junk)


def read(content: bytes, reader: Callable[[bytes, str], ParsedDocument]) -> ParsedDocument | None:
    """The document, or None where it is unreadable as a whole, which must have a name."""
    message = ""
    try:
        parsed = reader(content, "a.file")
    except (TruncatedFileError, UnsupportedFormatError) as error:
        message = str(error)
    if message:
        assert message.startswith("a.file: ")
        assert ", expected " in message
        return None
    check(parsed)
    return parsed


def check(parsed: ParsedDocument) -> None:
    counts = parsed.counts
    assert counts.balance
    assert counts.images_with_problem == sum(not image.is_usable for image in parsed.images)
    assert counts.boxes_with_problem == sum(box.problem is not None for image in parsed.images for box in image.boxes)
    known = {known.name for known in parsed.classes}
    for image in parsed.images:
        assert image.entry
        assert image.name or image.problems
        for problem in filter(None, (*image.problems, *(box.problem for box in image.boxes))):
            problem.encode()  # nothing that cannot be printed
            assert len(problem) < 500
        for box in image.boxes:
            assert (box.category in known) or box.problem
            assert image.first_problem or box.problem is None


# --- documents ----------------------------------------------------------------------------------------------------

coco_images = entry(
    {"id": ids, "file_name": file_names},
    {"width": sizes, "height": sizes, "status": st.sampled_from(["labeled", "done", None]), "reviewed": st.booleans()},
)
coco_boxes = entry(
    {"image_id": ids, "category_id": ids, "bbox": st.lists(numbers, min_size=4, max_size=5)},
    {
        "id": ids,
        "iscrowd": st.sampled_from([0, 1, None, "", "1", 2]),
        "segmentation": polygons | run_lengths | masks | st.just([]),
        "attributes": st.fixed_dictionaries({"rotation": numbers}),
        "score": numbers,
        "ignore": st.sampled_from([0, 1]),
    },
)
coco_classes = entry({"id": ids, "name": names}, {"supercategory": st.sampled_from(["none", "bolt", "all", ""])})


@EXAMPLES
@given(
    st.lists(coco_images, max_size=5),
    st.lists(coco_boxes, max_size=8),
    st.lists(coco_classes, max_size=4),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.none() | st.lists(ids | file_names, max_size=2),
)
def test_coco(images: list[Any], boxes: list[Any], classes: list[Any], encoding: str, reviewed: Any) -> None:
    content = {"images": images, "annotations": boxes, "categories": classes, "reviewed": reviewed}
    parsed = read(json.dumps(content).encode(encoding), parse_coco)
    assert parsed is not None
    assert parsed.counts.images_listed == len(images)
    assert parsed.counts.boxes_listed == len(boxes)


regions = entry(
    {
        "type": st.sampled_from(["rectanglelabels", "polygonlabels", "brushlabels", "labels", "rectangle", "choices"]),
        "value": entry(
            {"x": numbers, "y": numbers, "width": numbers, "height": numbers},
            {
                "rectanglelabels": st.lists(names, max_size=2),
                "labels": st.lists(names, max_size=2),
                "polygonlabels": st.lists(names, max_size=1),
                "points": st.lists(st.lists(numbers, max_size=2), max_size=4),
                "rotation": st.sampled_from([0, 360, 90, 12.5, "x"]),
                "rle": st.lists(st.integers(0, 255), max_size=12),
                "radiusX": numbers,
                "radiusY": numbers,
            },
        ),
    },
    {"id": st.sampled_from(["r", "s"]), "original_width": sizes, "original_height": sizes, "image_rotation": numbers},
)
answers = entry(
    {"result": st.lists(regions, max_size=3)},
    {"was_cancelled": st.booleans(), "completed_by": junk, "lead_time": junk, "updated_at": junk, "id": ids},
)
tasks = entry(
    {"data": entry({"image": file_names}, {"image_id": junk, "width_px": sizes, "height_px": sizes})},
    {
        "annotations": st.lists(answers, max_size=2),
        "predictions": st.lists(answers, max_size=1),
        "id": ids,
        "file_upload": file_names,
    },
)


@EXAMPLES
@given(st.lists(tasks, max_size=4), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_label_studio(listed: list[Any], encoding: str) -> None:
    whole = {"id": 1, "data": {"image": "p.jpg"}, "annotations": []}
    parsed = read(json.dumps([whole, *listed]).encode(encoding), parse_label_studio)
    assert parsed is not None
    counts = [task.get("annotations", task.get("completions")) if isinstance(task, dict) else None for task in listed]
    expected = sum(max(1, len(found)) if isinstance(found, list) else 1 for found in counts)
    assert parsed.counts.images_listed == 1 + expected


texts = st.sampled_from(["bolt", "nut", "Bolt ", "", "a<b", "螺栓"]) | st.text("ab<&\"' ü", max_size=4)
values = st.sampled_from(["1", "5", "12.5", "30", "64", "", "x", "nan", "inf", "0.25", "1e400", "-3"])


def element(tag: str, inside: str, attributes: dict[str, str] | None = None) -> str:
    stated = "".join(f" {key}={quoteattr(value)}" for key, value in (attributes or {}).items())
    return f"<{tag}{stated}>{inside}</{tag}>"


def leaves(values_by_tag: Iterable[tuple[str, str]]) -> str:
    return "".join(element(tag, escape(value)) for tag, value in values_by_tag)


corner_tags = st.sampled_from(["xmin", "ymin", "xmax", "ymax", "x1", "y1", "x2", "y2", "x3", "y3", "cx", "w", "angle"])
voc_parts = st.one_of(
    st.tuples(values, values, values, values).map(
        lambda v: element("bndbox", leaves(zip(("xmin", "ymin", "xmax", "ymax"), v, strict=True)))
    ),
    st.lists(st.tuples(corner_tags, values), max_size=6).map(lambda pairs: element("bndbox", leaves(pairs))),
    st.lists(st.tuples(corner_tags, values), max_size=8).map(lambda pairs: element("polygon", leaves(pairs))),
    st.lists(st.tuples(corner_tags, values), max_size=6).map(lambda pairs: element("robndbox", leaves(pairs))),
    values.map(lambda v: element("attribute", leaves([("name", "rotation"), ("value", v)]))),
    values.map(lambda v: element("difficult", v)),
)
voc_objects = st.tuples(texts, st.lists(voc_parts, max_size=3)).map(
    lambda pair: element("object", element("name", escape(pair[0])) + "".join(pair[1]))
)
voc_sheets = st.tuples(st.lists(voc_objects, max_size=4), values, values, texts).map(
    lambda parts: element(
        "annotation",
        element("size", leaves([("width", parts[1]), ("height", parts[2])]))
        + leaves([("filename", parts[3]), ("status", parts[3])])
        + "".join(parts[0]),
    )
)
cuts = st.integers(0, 400)


@EXAMPLES
@given(st.lists(st.tuples(voc_sheets | texts, cuts, st.sampled_from(["utf-8", "utf-16", "latin-1"])), max_size=4))
def test_voc(sheets: list[tuple[str, int, str]]) -> None:
    files = []
    for number, (text, cut, encoding) in enumerate(sheets):
        content = text.encode(encoding, "xmlcharrefreplace")
        files.append((f"{number}.xml", content[: len(content) - cut] if cut < 40 else content))
    parsed = parse_voc_files(files, "sheets")
    check(parsed)
    assert [image.name for image in parsed.images] == [name for name, _ in files]


cvat_shapes = st.tuples(
    st.sampled_from(["box", "polygon", "mask", "ellipse", "points", "skeleton", "tag"]),
    st.dictionaries(
        st.sampled_from(["xtl", "ytl", "xbr", "ybr", "rotation", "left", "top", "width", "height", "cx", "cy", "rx"]),
        values,
        max_size=9,
    ),
    texts,
    st.lists(st.tuples(values, values), max_size=4).map(lambda pairs: ";".join(f"{x},{y}" for x, y in pairs)),
).map(lambda parts: element(parts[0], "", {**parts[1], "label": parts[2], "points": parts[3]}))
cvat_images = st.tuples(st.lists(cvat_shapes, max_size=4), texts, values, values).map(
    lambda p: element("image", "".join(p[0]), {"name": p[1], "width": p[2], "height": p[3]})
)
cvat_labels = st.tuples(texts, st.sampled_from(["rectangle", "any", "tag"])).map(
    lambda pair: element("label", leaves([("name", pair[0]), ("type", pair[1])]))
)


@EXAMPLES
@given(st.lists(cvat_images, max_size=4), st.lists(cvat_labels, max_size=3), cuts)
def test_cvat(images: list[str], labels: list[str], cut: int) -> None:
    meta = element("meta", element("task", element("labels", "".join(labels))))
    content = element("annotations", meta + "".join(images)).encode()
    parsed = read(content, parse_cvat)
    assert parsed is not None
    assert parsed.counts.images_listed == len(images)
    read(content[: len(content) - cut], parse_cvat)


fields = st.sampled_from(
    ["0", "1", "1.0", "1e0", "2", "9", "-1", "x", "0.5", "0.25", "1.5", "40", "nan", "0,5", "1e400"]
)
label_lines = st.lists(fields, max_size=11).map(" ".join)
label_files = st.lists(label_lines, max_size=5).map("\n".join)


@EXAMPLES
@given(
    st.lists(st.tuples(label_files, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])), max_size=4) | st.just([]),
    st.lists(texts, max_size=4),
    st.none() | st.just((96, 72)),
)
def test_yolo(sheets: list[tuple[str, str]], names: list[str], size: tuple[int, int] | None) -> None:
    classes = parse_yolo_classes("\n".join(names).encode(), "classes.txt")
    files = [(f"labels/{n}.txt", text.encode(encoding)) for n, (text, encoding) in enumerate(sheets)]
    parsed = parse_yolo_files(files, "labels", classes, lambda _: size)
    check(parsed)
    assert [image.name for image in parsed.images] == [name for name, _ in files]


words = fields | st.sampled_from(["plane", "ship", "imagesource:GoogleEarth", "gsd:0.1", "12", "30", "64", "1\x00"])
text_sheets = st.lists(
    st.tuples(st.lists(st.lists(words, max_size=11), max_size=5), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
    max_size=4,
)


@EXAMPLES
@given(text_sheets)
def test_dota_and_visdrone(sheets: list[tuple[list[list[str]], str]]) -> None:
    for separator, reader in ((" ", parse_dota_files), (",", parse_visdrone_files)):
        files = []
        for number, (lines, encoding) in enumerate(sheets):
            text = "\n".join(separator.join(line) for line in lines)
            files.append((f"labels/{number}.txt", text.encode(encoding)))
        parsed = reader(files, "labels")
        check(parsed)
        assert [image.name for image in parsed.images] == [name for name, _ in files]


coordinates = st.integers(2, 8000) | st.floats(2, 8000, allow_subnormal=False)


@EXAMPLES
@given(st.lists(st.tuples(*[coordinates] * 8, st.sampled_from(["plane", "small-vehicle"])), max_size=5))
def test_the_box_of_a_quadrilateral_encloses_its_corners_and_no_more(drawn: list[tuple[Any, ...]]) -> None:
    text = "\n".join(" ".join(map(str, values)) + " 0" for values in drawn)
    parsed = parse_dota_files([("labels/1.txt", text.encode())], "labels")
    check(parsed)
    for values, box in zip(drawn, parsed.images[0].boxes, strict=True):
        xs, ys = values[0:8:2], values[1:8:2]
        assert box.problem is None
        assert (box.category, box.xyxy) == (values[8], (min(xs), min(ys), max(xs), max(ys)))


pixels = st.integers(0, 4000)


@EXAMPLES
@given(st.lists(st.tuples(pixels, pixels, pixels, pixels, st.integers(0, 1), st.integers(0, 11)), max_size=6))
def test_every_valid_line_of_visdrone_is_read(drawn: list[tuple[int, ...]]) -> None:
    text = "".join(",".join(map(str, (*values, 0, 0))) + "\n" for values in drawn)
    parsed = parse_visdrone_files([("annotations/1.txt", text.encode())], "annotations")
    check(parsed)
    assert parsed.counts.boxes_with_problem == 0
    objects = [box for box in parsed.images[0].boxes if not box.is_crowd]
    expected = [(x, y, x + w, y + h) for x, y, w, h, _, category in drawn if category]
    assert [box.xyxy for box in objects] == expected
    assert [box.is_ignored for box in objects] == [score == 0 for *_, score, category in drawn if category]
    assert parsed.counts.boxes_crowd == 11 * sum(category == 0 for *_, category in drawn)


manifest_boxes = entry(
    {"class_id": ids, "left": numbers, "top": numbers, "width": numbers, "height": numbers}, {"id": junk}
)
manifest_values = entry(
    {"annotations": st.lists(manifest_boxes, max_size=3)}, {"image_size": st.lists(junk, max_size=2)}
)
manifest_metadata = entry(
    {"class-map": st.dictionaries(st.sampled_from(["0", "1", "2", "x"]), names, max_size=3)},
    {
        "type": st.sampled_from(["groundtruth/object-detection", "groundtruth/text-classification", None]),
        "human-annotated": st.sampled_from(["yes", "no", True, None]),
        "creation-date": st.sampled_from(["2026-03-02T08:00:00.5", "2026-03-02T08:00:00Z", "yesterday", "", 3]),
        "objects": st.lists(st.fixed_dictionaries({"confidence": numbers}) | junk, max_size=3),
        "job-name": st.sampled_from(["labeling-job/a", "/", "", 3]),
        "failure-reason": st.sampled_from(["", "no consensus"]),
    },
)
manifest_lines = entry(
    {"source-ref": file_names},
    {"box": manifest_values, "box-metadata": manifest_metadata, "b": manifest_values, "b-metadata": manifest_metadata},
)


@EXAMPLES
@given(st.lists(manifest_lines, max_size=5), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), cuts)
def test_ground_truth(listed: list[Any], encoding: str, cut: int) -> None:
    whole = {"source-ref": "s3://b/p.jpg"}
    content = "".join(json.dumps(line) + "\n" for line in [whole, *listed]).encode(encoding)
    parsed = read(content, parse_ground_truth)
    assert parsed is not None
    assert parsed.counts.images_listed == 1 + len(listed)
    read(content[: len(content) - cut], parse_ground_truth)


@EXAMPLES
@given(junk | st.dictionaries(st.sampled_from(["names", "train", "path", "kpt_shape", "nc"]), junk))
def test_class_files(value: Any) -> None:
    try:
        classes = parse_yolo_classes(json.dumps(value).encode(), "data.yaml")
    except UnsupportedFormatError:
        return
    assert len(classes.classes) + len(classes.problems) == len(classes.names)


@EXAMPLES
@given(st.binary(max_size=60) | junk.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(content: bytes) -> None:
    for reader in (parse_coco, parse_label_studio, parse_cvat, parse_ground_truth):
        read(content, reader)
    check(parse_voc_files([("a.xml", content)], "sheets"))
    check(parse_yolo_files([("a.txt", content)], "labels", YoloClasses(("bolt",), {})))
    check(parse_dota_files([("a.txt", content)], "labels"))
    check(parse_visdrone_files([("a.txt", content)], "labels"))


# --- written, then read -------------------------------------------------------------------------------------------

class_names = st.lists(
    st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="\u0085"), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
    unique=True,
)


@st.composite
def documents(draw: st.DrawFn) -> ParsedDocument:
    classes = draw(class_names)
    images = []
    for number in range(draw(st.integers(0, 4))):
        width_px, height_px = draw(st.integers(8, 8000)), draw(st.integers(8, 8000))
        boxes = []
        for _ in range(draw(st.integers(0, 4))):
            left, right = sorted(draw(st.tuples(*[st.floats(0, 1)] * 2)))
            upper, lower = sorted(draw(st.tuples(*[st.floats(0, 1)] * 2)))
            right, lower = max(right, left + 2 / width_px), max(lower, upper + 2 / height_px)
            corners = (left * width_px, upper * height_px, right * width_px, lower * height_px)
            boxes.append(ParsedBox(draw(st.sampled_from(classes)), corners))
        unboxed: list[Status | None] = ["empty", "skipped", None]
        status: Status | None = "labeled" if boxes else draw(st.sampled_from(unboxed))
        name = draw(st.text("abcäöü螺 _-", min_size=1, max_size=8)).strip() or "a"
        image = ParsedImage(f"day/{number}{name}.jpg", "", tuple(boxes), (), None, width_px, height_px, "px", status)
        images.append(image)
    listed = tuple(ParsedClass(number, name) for number, name in enumerate(classes))
    return ParsedDocument("coco", "sample", listed, tuple(images))


def same(
    written: ParsedDocument,
    parsed: ParsedDocument,
    *,
    ending: str = ".jpg",
    has_status: bool = True,
    within_px: float = 0.01,
) -> None:
    check(parsed)
    assert parsed.counts.images_good == len(written.images)
    for old, new in zip(written.images, parsed.images, strict=True):
        assert new.name == old.name.removesuffix(".jpg") + ending
        assert not has_status or new.status == old.status
        for one, other in zip(old.boxes, new.boxes, strict=True):
            assert (one.category, one.kind) == (other.category, other.kind)
            assert all(abs(a - b) < within_px for a, b in zip(one.xyxy, other.xyxy, strict=True))


@EXAMPLES
@given(documents())
def test_written_documents_are_read_as_they_were(written: ParsedDocument) -> None:
    parsed = parse_coco(write_coco(written), "a.json")
    assert parsed.class_names == written.class_names
    same(written, parsed)
    same(written, parse_label_studio(write_label_studio(written), "a.json"))
    parsed = parse_cvat(write_cvat(written), "a.xml")
    assert parsed.class_names == written.class_names
    same(written, parsed, has_status=False)
    same(written, parse_voc_files(write_voc(written), "sheets"), ending=".xml")
    parsed = parse_ground_truth(write_ground_truth(written, created_at="2026-03-02T08:00:00"), "a.manifest") if (
        written.images
    ) else None  # fmt: skip
    if parsed is not None:  # whole pixels; neither skipped images nor classes of a document without answers are told
        same(written, parsed, has_status=False, within_px=0.51)
        said = [image.status if image.status in ("labeled", "empty") else None for image in written.images]
        assert [image.status for image in parsed.images] == said
    (name, names), *labels = write_yolo(written)
    size_of = {
        image.name.removesuffix(".jpg") + ".txt": (image.width_px or 0, image.height_px or 0)
        for image in written.images
    }
    parsed = parse_yolo_files(labels, "labels", parse_yolo_classes(names, name), size_of.get)
    assert parsed.class_names == written.class_names
    same(written, parsed, ending=".txt", has_status=False)
