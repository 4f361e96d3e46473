import json
from typing import Any

import pytest

from tasks.data.errors import TruncatedFileError, UnsupportedFormatError
from tasks.data.formats.base import ParsedDocument, ParsedImage
from tasks.data.formats.label_studio import parse_label_studio, write_label_studio
from tests.tasks.data.formats.samples import BOLT, NUT, document, image, problems, shapes


def region(*labels: str, kind: str = "rectanglelabels", value: Any = None, **changes: Any) -> dict[str, Any]:
    place = {"x": 20.0, "y": 25.0, "width": 30.0, "height": 40.0, "rotation": 0}
    value = {**place, **(value or {})} if kind.startswith("rectangle") else {**(value or {})}
    if labels:
        value[kind] = list(labels)
    size = {"original_width": 200, "original_height": 100, "image_rotation": 0}
    return {"id": "r", "type": kind, "from_name": "label", "to_name": "image", **size, "value": value, **changes}


def task(*results: Any, **changes: Any) -> dict[str, Any]:
    annotation = {"id": 1, "completed_by": 7, "result": list(results), "was_cancelled": False, "lead_time": 3.0}
    annotation |= {"updated_at": "2026-11-24T10:00:00Z", **changes}
    return {"id": 9, "data": {"image": "/data/upload/4/ab12cd34-p.png"}, "annotations": [annotation]}


def read(*tasks: Any) -> ParsedDocument:
    parsed = parse_label_studio(json.dumps(list(tasks)).encode(), "ls.json")
    assert parsed.counts.balance
    return parsed


def one(*results: Any, **changes: Any) -> ParsedImage:
    return read(task(*results, **changes)).images[0]


def test_percentages_become_pixels() -> None:
    found = one(region("nut"))
    assert shapes(found) == [("nut", (40, 25, 100, 65), "box")]
    assert (found.name, found.status, found.annotator, found.seconds_spent) == (
        "/data/upload/4/ab12cd34-p.png",
        "labeled",
        "7",
        3.0,
    )
    assert (found.width_px, found.height_px, found.finished_at) == (200, 100, "2026-11-24T10:00:00Z")


def test_a_persons_verdict_is_read_and_a_task_without_one_states_nothing() -> None:
    untouched = {"id": 1, "data": {"image": "a.jpg"}, "annotations": [], "predictions": [{"result": [region("bolt")]}]}
    parsed = read(task(region("nut")), task(), task(region("nut"), was_cancelled=True), untouched)
    assert [found.status for found in parsed.images] == ["labeled", "empty", "skipped", None]
    assert [len(found.boxes) for found in parsed.images] == [1, 0, 0, 0]
    assert parsed.images[3].predicted[0].category == "bolt"


def test_each_annotators_answer_is_an_entry() -> None:
    both = task(region("nut"))
    both["annotations"].append({**both["annotations"][0], "completed_by": {"id": 8, "email": "b@example.org"}})
    parsed = read(both)
    assert [found.annotator for found in parsed.images] == ["7", "b@example.org"]
    assert parsed.images[1].entry == "ls.json: tasks[0].annotations[1]"


def test_other_names_and_ids_of_the_image_are_read() -> None:
    content = task()
    content["data"] |= {"image_id": "0f", "image_sha256": "ab" * 32, "thumb": "x/p.jpg?v=1"}
    found = read({**content, "file_upload": "ab12cd34-p.png"}).images[0]
    assert (found.image_id, found.sha256) == ("0f", "ab" * 32)
    assert found.alternative_names == ("x/p.jpg?v=1", "ab12cd34-p.png")


@pytest.mark.parametrize("rotation", [0, 360, -360, None, "0"])
def test_a_full_turn_is_none(rotation: Any) -> None:
    assert shapes(one(region("nut", value={"rotation": rotation}))) == [("nut", (40, 25, 100, 65), "box")]


def test_the_pivot_of_a_turn_is_the_upper_left_corner() -> None:
    assert shapes(one(region("nut", value={"rotation": 90}))) == [("nut", (0, 25, 40, 85), "box")]
    box = one(region("nut", value={"rotation": 30})).boxes[0]
    assert (box.kind, box.rotation_deg) == ("rotated", 30)
    assert box.xyxy == pytest.approx((20.0, 25.0, 91.9615, 89.6410), abs=1e-3)


def test_a_shape_and_its_label_are_one_region() -> None:
    shape = region(kind="rectangle")
    label = region("nut", kind="labels", value={"x": 20, "y": 25, "width": 30, "height": 40})
    assert shapes(one(shape, label)) == [("nut", (40, 25, 100, 65), "box")]


def test_results_that_are_no_regions_are_passed_over() -> None:
    others = [
        {"id": "r", "type": "choices", "value": {"choices": ["blurred"]}},
        {"id": "r", "type": "textarea", "value": {"text": ["x"]}},
        {"id": "q", "type": "ranker", "value": {"ranker": {}}},
        {"type": "relation", "from_id": "a", "to_id": "b"},
        {"id": "z", "type": "somebody's own", "value": {"note": 3}},
    ]
    assert shapes(one(region("nut"), *others)) == [("nut", (40, 25, 100, 65), "box")]
    assert one(*others).status == "empty"


def test_other_shapes_are_marked() -> None:
    polygon = region("nut", kind="polygonlabels", value={"points": [[10, 10], [20, 10], [15, 30]]})
    rectangle = region("nut", kind="polygonlabels", value={"points": [[10, 10], [20, 10], [20, 30], [10, 30]]})
    ellipse = region("nut", kind="ellipselabels", value={"x": 20, "y": 25, "radiusX": 3, "radiusY": 4, "rotation": 0})
    assert shapes(one(polygon, rectangle, ellipse)) == [
        ("nut", (20, 10, 40, 30), "polygon"),
        ("nut", (20, 10, 40, 30), "box"),
        ("nut", (34, 21, 46, 29), "ellipse"),
    ]


def brush(width: int, height: int, filled: set[tuple[int, int]]) -> list[int]:
    """Label Studio's encoding of a mask, written with literal values and runs of 8-bit words."""
    values = [255 if (n // 4 % width, n // 4 // width) in filled else 0 for n in range(4 * width * height)]
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size:04b}" for size in (2, 7, 8, 15))
    at = 0
    while at < len(values):
        run = 1
        while at + run < len(values) and values[at + run] == values[at] and run < 8:
            run += 1
        if run > 2:
            bits += f"1{0:02b}{run - 1:03b}{values[at]:08b}"
        else:
            run = min(2, len(values) - at)
            bits += f"0{0:02b}{run - 1:03b}" + "".join(f"{value:08b}" for value in values[at : at + run])
        at += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


def test_a_brush_mask_has_the_box_of_its_pixels() -> None:
    size = {"original_width": 12, "original_height": 9}
    mask = brush(12, 9, {(3, 2), (4, 2), (7, 6)})
    found = one(region("nut", kind="brushlabels", value={"rle": mask, "format": "rle"}, **size))
    assert shapes(found) == [("nut", (3, 2, 8, 7), "rle")]
    for broken in (mask[:9], [], [300], "x", brush(12, 9, set()), brush(11, 9, {(1, 1)})):
        found = one(region("nut", kind="brushlabels", value={"rle": broken}, **size))
        assert "brush mask is unreadable" in problems(found)[0]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (region(), "labels of the region are [], expected one"),
        (region(value={"rectanglelabels": None}), "labels of the region are [], expected one"),
        (region("nut", "bolt"), "labels of the region are ['nut', 'bolt'], expected one"),
        (region("nut", image_rotation=90), "turned by 90 degrees in the editor"),
        (region("nut", original_width=None), "original_width and original_height are missing"),
        (region("nut", original_width="wide"), "the stated image size is 'wide' x 100"),
        (region("nut", value={"x": None}), "expected percentages"),
        (region("nut", value={"rotation": "steep"}), "rotation is 'steep', expected degrees"),
        (region("nut", kind="keypointlabels", value={"x": 1, "y": 2, "width": 0.5}), "of type 'keypointlabels'"),
        (region("nut", kind="polygonlabels", value={"points": [[1, 2], [3, 4]]}), "expected 3 or more"),
        (region("nut", kind="polygonlabels", value={"points": [[1, 2], [3], 5]}), "expected two percentages"),
        (region(""), "class name is ''"),
        (7, "the result is 7, expected a region"),
    ],
)
def test_what_is_wrong_with_a_region_is_named(result: Any, words: str) -> None:
    found = one(region("bolt"), result)
    assert any(words in problem for problem in problems(found))
    assert found.boxes[0].problem is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"data": {}, "annotations": []}, "names no image"),
        ({"data": {"image": "a.jpg"}, "annotations": 3}, "annotations is 3, expected a list"),
        ({"data": {"image": "a.jpg"}, "annotations": [5]}, "the annotation is 5"),
        ({"data": {"image": "a.jpg"}, "annotations": [{"result": None}]}, "result is None"),
        (5, "the task is 5"),
        (task(region("nut"), region("nut", original_width=50)), "several image sizes"),
    ],
)
def test_what_is_wrong_with_a_task_is_named(content: Any, words: str) -> None:
    parsed = read(task(region("nut")), content)
    assert words in problems(parsed.images[1])[0]
    assert parsed.images[0].is_usable


def test_the_flat_export_is_read() -> None:
    value = {**region("nut")["value"], "original_width": 200, "original_height": 100}
    flat = {
        "image": "/data/upload/a.jpg",
        "id": 1,
        "label": [value],
        "annotator": 7,
        "annotation_id": 2,
        "lead_time": 3,
    }
    found = read(flat, {"image": "b.jpg", "annotator": 7, "annotation_id": 3, "lead_time": 1}).images
    assert shapes(found[0]) == [("nut", (40, 25, 100, 65), "box")]
    assert [(image.name, image.status) for image in found] == [("/data/upload/a.jpg", "labeled"), ("b.jpg", "empty")]


def test_near_equal_names_are_named() -> None:
    assert read(task(region("Bolt"), region("bolt"))).near_equal_names == (("Bolt", "bolt"),)


def test_a_file_cut_short_is_truncated_and_others_are_unsupported() -> None:
    with pytest.raises(TruncatedFileError):
        parse_label_studio(json.dumps([task()]).encode()[:-9], "ls.json")
    for content in (b"{}", b"[1]", b"3", b'[{"shapes": []}]'):
        with pytest.raises(UnsupportedFormatError, match="a Label Studio export"):
            parse_label_studio(content, "ls.json")
    assert not parse_label_studio(b"[]", "ls.json").images


def test_writing_keeps_everything() -> None:
    first = image("a/p1.jpg", BOLT, NUT, status="labeled", annotator="ann", seconds_spent=2.5, sha256="ab" * 32)
    written = document(first, image("p2.jpg", status="empty"), image("p3.jpg"), image("p4.jpg", status="skipped"))
    parsed = parse_label_studio(write_label_studio(written), "ls.json")
    for old, new in zip(written.images, parsed.images, strict=True):
        assert shapes(old) == shapes(new)
        for key in ("name", "width_px", "height_px", "status", "annotator", "seconds_spent", "sha256"):
            assert getattr(old, key) == getattr(new, key)
