import json
from typing import Any

import pytest
from pycocotools import mask as pycoco_mask

from tasks.data.errors import TruncatedFileError, UnsupportedFormatError
from tasks.data.formats import coco as coco_format
from tasks.data.formats.base import ParsedClass, ParsedDocument
from tasks.data.formats.coco import parse_coco, write_coco
from tests.tasks.data.formats.samples import BOLT, NUT, document, image, problems, shapes


def coco(**changes: Any) -> dict[str, Any]:
    """Two images with a box each, and a third without."""
    content: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"p{n}.jpg", "width": 96, "height": 72} for n in (1, 2, 3)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 12, 20, 15], "iscrowd": 0, "segmentation": []},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [30.5, 4, 9.5, 8], "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}],
    }
    return {**content, **changes}


def read(content: Any) -> ParsedDocument:
    parsed = parse_coco(json.dumps(content).encode(), "a.json")
    assert parsed.counts.balance
    return parsed


def with_box(**changes: Any) -> dict[str, Any]:
    content = coco()
    content["annotations"][0] |= changes
    return content


def test_boxes_sizes_and_entries_are_read() -> None:
    parsed = read(coco())
    assert [one.name for one in parsed.images] == ["p1.jpg", "p2.jpg", "p3.jpg"]
    assert shapes(parsed.images[0]) == [("bolt", (10, 12, 30, 27), "box")]
    assert shapes(parsed.images[1]) == [("nut", (30.5, 4, 40, 12), "box")]
    assert (parsed.images[0].width_px, parsed.images[0].height_px) == (96, 72)
    assert parsed.images[1].entry == "a.json: images[1]"
    assert parsed.images[1].boxes[0].entry == "annotations[1]"


def test_a_listed_image_without_boxes_states_nothing() -> None:
    assert [one.status for one in read(coco()).images] == [None, None, None]


def test_a_persons_statement_is_read() -> None:
    content = coco(reviewed=["p1.jpg"])
    content["images"][1]["status"] = "skipped"
    content["images"][2] |= {"reviewed": True, "annotator": "ann", "seconds_spent": 4, "finished_at": "2026-01-02"}
    parsed = read(content)
    assert [one.status for one in parsed.images] == ["labeled", "skipped", "empty"]
    assert (parsed.images[2].annotator, parsed.images[2].seconds_spent) == ("ann", 4.0)
    content["images"][1]["status"] = "done"
    assert "status is 'done'" in problems(read(content).images[1])[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: [a.update(category_id=str(a["category_id"])) for a in c["annotations"]],
        lambda c: [a.update(category_id=float(a["category_id"])) for a in c["annotations"]],
        lambda c: [a.update(image_id=f" {a['image_id']} ") for a in c["annotations"]],
        lambda c: [i.update(id=str(i["id"])) for i in c["images"]],
        lambda c: [k.update(id=str(k["id"])) for k in c["categories"]],
        lambda c: [a.update(iscrowd=None) for a in c["annotations"]],
        lambda c: [a.update(iscrowd="") for a in c["annotations"]],
        lambda c: [a.update(bbox=[str(v) for v in a["bbox"]]) for a in c["annotations"]],
        lambda c: [i.update(width=96.0, height="72") for i in c["images"]],
        lambda c: [i.update(extra={"name": 3}, license=1) for i in c["images"]],
        lambda c: [a.update(id=0) for a in c["annotations"]],
        lambda c: [a.pop("id") for a in c["annotations"]],
        lambda c: [a.update(attributes={"occluded": False, "rotation": 0.0}) for a in c["annotations"]],
        lambda c: [a.update(attributes={"rotation": 360}) for a in c["annotations"]],
    ],
)
def test_ids_flags_and_numbers_of_other_types_are_read_alike(change: Any) -> None:
    content = coco()
    change(content)
    assert [shapes(one) for one in read(content).images] == [shapes(one) for one in read(coco()).images]
    assert all(one.is_usable and one.width_px in (96, None) for one in read(content).images)


def test_blank_sizes_are_no_size() -> None:
    content = coco()
    for entry in content["images"]:
        entry["width"] = entry["height"] = ""
    assert {(one.width_px, one.height_px, one.is_usable) for one in read(content).images} == {(None, None, True)}


def test_a_class_name_may_be_a_number() -> None:
    parsed = read(coco(categories=[{"id": 1, "name": 3}, {"id": 2, "name": "no"}]))
    assert parsed.class_names == ("3", "no")
    assert parsed.images[0].boxes[0].category == "3"


def test_classes_without_boxes_are_kept_in_order() -> None:
    names = ["crack", "bolt", "no", "1e3", "a: b, c", "# hash", "螺栓 🔩", "null", "~", "nut", "trailing:"]
    parsed = read(coco(categories=[{"id": n, "name": name} for n, name in enumerate(names)]))
    assert parsed.class_names == tuple(names)


def test_a_root_class_is_a_group_until_it_has_boxes() -> None:
    parts = [{"id": 0, "name": "parts", "supercategory": "none"}]
    parts += [{"id": n, "name": name, "supercategory": "parts"} for n, name in ((7, "bolt"), (9, "nut"))]
    content = coco(categories=parts)
    for annotation, category in zip(content["annotations"], (7, 9), strict=True):
        annotation["category_id"] = category
    assert read(content).classes[0] == ParsedClass(0, "parts", is_group=True)
    assert read(content).class_names == ("bolt", "nut")
    content["annotations"][0]["category_id"] = 0
    assert read(content).class_names == ("parts", "bolt", "nut")


def test_near_equal_class_names_are_named() -> None:
    names = ["Bolt", "bolt ", "nut"]
    parsed = read(coco(categories=[{"id": n, "name": name} for n, name in enumerate(names, start=1)]))
    assert parsed.near_equal_names == (("Bolt", "bolt "),)
    assert parsed.class_names == ("Bolt", "bolt", "nut")


def test_broken_classes_are_problems_of_the_document() -> None:
    parsed = read(coco(categories=[{"id": 1, "name": "bolt"}, {"id": 1, "name": "nut"}, 5, {"id": 2, "name": ""}]))
    assert len(parsed.problems) == 3
    assert not parsed.classes
    assert "category_id is 1" in problems(parsed.images[0])[0]


@pytest.mark.parametrize(
    ("changes", "kind", "corners", "is_stated"),
    [
        ({"segmentation": [[10, 12, 30, 12, 20, 27]]}, "polygon", (10, 12, 30, 27), True),
        ({"segmentation": [[10, 12, 30, 12, 30, 27, 10, 27]]}, "box", (10, 12, 30, 27), True),
        (
            {"segmentation": [[1, 2, 9, 2, 5, 8], [20, 20, 29, 20, 5, 28]], "bbox": []},
            "polygon",
            (1, 2, 29, 28),
            False,
        ),
        ({"segmentation": [[4, 4, 30, 4, 30, 30, 4, 30]], "bbox": None}, "box", (4, 4, 30, 30), False),
        ({"segmentation": {"size": [4, 5], "counts": [5, 2, 2, 2, 9]}, "bbox": []}, "rle", (1, 1, 3, 3), False),
        ({"segmentation": {"size": [72, 96], "counts": "broken"}}, "rle", (10, 12, 30, 27), True),
        ({"attributes": {"rotation": 90}, "bbox": [10, 10, 20, 10]}, "box", (15, 5, 25, 25), True),
        ({"bbox": [20, 20, 10, 6, 45.0]}, "rotated", (14.343, 14.343, 25.657, 25.657), False),
    ],
)
def test_other_shapes_are_marked(changes: Any, kind: str, corners: tuple[float, ...], is_stated: bool) -> None:
    parsed = read(with_box(**changes))
    assert shapes(parsed.images[0]) == [("bolt", corners, kind)]
    assert parsed.images[0].boxes[0].has_stated_box == is_stated


def test_a_rotated_box_has_the_bounding_box_of_what_was_drawn() -> None:
    box = read(with_box(attributes={"rotation": "37.5"})).images[0].boxes[0]
    assert (box.kind, box.rotation_deg) == ("rotated", 37.5)
    assert box.xyxy == pytest.approx((7.5008, 7.4622, 32.4992, 31.5378), abs=1e-3)


@pytest.mark.parametrize(
    "runs", [[0, 20], [3, 1, 16], [0, 4, 16], [7, 9, 4], [19, 1], [5, 2, 2, 2, 9], [0, 1, 3, 1, 3, 1, 11]]
)
def test_bounds_of_run_lengths_are_those_of_pycocotools(runs: list[int]) -> None:
    compressed = pycoco_mask.frPyObjects({"size": [4, 5], "counts": runs}, 4, 5)
    x, y, width, height = pycoco_mask.toBbox(compressed).tolist()
    for counts in (runs, compressed["counts"].decode()):
        parsed = read(with_box(bbox=[], segmentation={"size": [4, 5], "counts": counts}))
        assert parsed.images[0].boxes[0].xyxy == (x, y, x + width, y + height)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bbox": [0.1, 0.2, 0.3, 0.4]}, "fractions of the image, expected pixels"),
        ({"bbox": [1, 2, 3]}, "expected x, y, width, height as numbers"),
        ({"bbox": [1, 2, "x", 4]}, "expected x, y, width, height as numbers"),
        ({"bbox": None}, "the bbox is missing"),
        ({"bbox": [], "segmentation": {"size": [2, 2], "counts": [9]}}, "no readable run-length encoding"),
        ({"bbox": [], "segmentation": [[1, 2]]}, "and there is no bbox"),
        ({"category_id": 99}, "category_id is 99, expected one of [1, 2]"),
        ({"category_id": None}, "category_id is None"),
        ({"iscrowd": 7}, "iscrowd is 7, expected 0 or 1"),
        ({"attributes": {"rotation": "steep"}}, "rotation is 'steep', expected degrees"),
        ({"bbox": [10**400, 2, 3, 4]}, "expected x, y, width, height as numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "expected x, y, width, height as numbers"),
    ],
)
def test_what_is_wrong_with_a_box_is_named(changes: Any, words: str) -> None:
    parsed = read(with_box(**changes))
    assert words in problems(parsed.images[0])[0]
    assert not parsed.images[0].is_usable
    assert parsed.images[1].is_usable
    assert parsed.counts.boxes_with_problem == 1


def test_crowd_regions_and_ignored_boxes_are_flagged() -> None:
    content = with_box(iscrowd=1, segmentation={"size": [72, 96], "counts": [0, 6912]})
    content["annotations"][1]["ignore"] = 1
    first, second = (one.boxes[0] for one in read(content).images[:2])
    assert (first.is_crowd, first.kind, second.is_crowd, second.is_ignored) == (True, "rle", False, True)
    assert read(content).counts.boxes_crowd == 1


def test_annotations_of_unlisted_images_are_strays() -> None:
    parsed = read(with_box(image_id=77))
    assert parsed.strays[0].entry == "a.json: annotations[0]"
    assert "image_id is 77" in parsed.strays[0].text
    assert parsed.counts.boxes_stray == 1


def test_ids_and_names_that_stand_for_two_images_are_problems() -> None:
    content = coco()
    content["images"] += [{"id": 1, "file_name": "q.jpg"}, {"id": 9, "file_name": "p2.jpg"}, dict(content["images"][2])]
    parsed = read(content)
    assert [bool(one.problems) for one in parsed.images] == [True, True, False, True, True]
    assert parsed.images_repeated == 1
    assert "listed again" in parsed.notes[0].text


def test_broken_images_are_problems() -> None:
    parsed = read(coco(images=[5, {"id": 1}, {"file_name": "x.jpg"}, {"id": 2, "file_name": "y.jpg", "width": "a"}]))
    assert [len(one.problems) for one in parsed.images] == [1, 1, 1, 1]
    assert len(parsed.strays) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings_are_read(encoding: str) -> None:
    content = json.dumps(coco(categories=[{"id": 1, "name": "Schraube groß"}]), ensure_ascii=False)
    assert parse_coco(content.encode(encoding), "a.json").class_names == ("Schraube groß",)


def test_a_national_encoding_is_guessed_and_noted() -> None:
    content = coco()
    for number, entry in enumerate(content["images"]):
        entry["file_name"] = f"Tür am Gebäude, größer als üblich {number}.jpg"
    parsed = parse_coco(json.dumps(content, ensure_ascii=False).encode("cp1252"), "a.json")
    assert parsed.images[0].name == "Tür am Gebäude, größer als üblich 0.jpg"
    assert "read as cp125" in parsed.notes[0].text


@pytest.mark.parametrize("cut", [1, 40, 200, 500])
def test_a_file_cut_short_is_truncated(cut: int) -> None:
    content = json.dumps(coco()).encode()
    with pytest.raises(TruncatedFileError, match=r"a\.json: the end of the JSON is missing"):
        parse_coco(content[:-cut], "a.json")
    with pytest.raises(TruncatedFileError):
        parse_coco(b"", "a.json")


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b'{"images": [], "annotations": {}, "categories": []}',
        b"no json }",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_what_is_no_coco_document_is_unsupported(content: bytes) -> None:
    with pytest.raises(UnsupportedFormatError, match="expected"):
        parse_coco(content, "a.json")


def test_other_names_of_an_image_are_alternatives() -> None:
    content = coco()
    content["images"][0] |= {"coco_url": "http://h/p1.jpg", "extra": {"name": "original.png"}, "image_id": "ab12"}
    one = read(content).images[0]
    assert one.alternative_names == ("http://h/p1.jpg", "original.png")
    assert one.image_id == "ab12"


def test_writing_keeps_everything() -> None:
    first = image("a/p1.jpg", BOLT, NUT, status="labeled", annotator="ann", seconds_spent=2.5, sha256="ab" * 32)
    written = document(first, image("p2.jpg", status="empty"), image("p3.jpg", image_id="0f"))
    parsed = parse_coco(write_coco(written), "a.json")
    assert parsed.class_names == ("bolt", "nut", "crack")
    for one, other in zip(written.images, parsed.images, strict=True):
        assert shapes(one) == shapes(other)
        for key in ("name", "width_px", "status", "annotator", "seconds_spent", "sha256", "image_id"):
            assert getattr(one, key) == getattr(other, key)


def test_what_is_no_plain_box_is_not_written() -> None:
    parsed = read(with_box(segmentation=[[10, 12, 30, 12, 20, 27]]))
    with pytest.raises(UnsupportedFormatError, match="the shape is polygon, expected box"):
        write_coco(parsed)
    with pytest.raises(UnsupportedFormatError, match="fractions"):
        write_coco(read(with_box(bbox=[0.1, 0.2, 0.3, 0.4])))


def test_a_large_document_is_read_whole() -> None:
    """How long it takes is measured by ``infra.bench.init``, against pycocotools."""
    count = 10_000
    content = coco(images=[{"id": n, "file_name": f"a/{n}.jpg", "width": 96, "height": 72} for n in range(count)])
    content["annotations"] = [
        {"id": n, "image_id": n % count, "category_id": 1 + n % 2, "bbox": [n % 50, 1.5, 20.25, 9], "iscrowd": 0}
        for n in range(10 * count)
    ]
    parsed = parse_coco(json.dumps(content).encode(), "a.json")
    assert parsed.counts.boxes_good == 10 * count
    assert all(image.is_usable for image in parsed.images)


def in_pieces_and_whole(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> tuple[ParsedDocument | None, ParsedDocument]:
    monkeypatch.setattr(coco_format, "_IN_PIECES_FROM_BYTES", len(content) + 1)
    return coco_format._read_in_pieces(content, "a.json"), parse_coco(content, "a.json")


KEYS = ("images", "annotations", "categories", "info")


@pytest.mark.parametrize("order", [KEYS, KEYS[::-1], (*KEYS[1:], KEYS[0])])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_large_document_is_read_in_pieces_to_the_same_end(
    order: tuple[str, ...], indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    content: dict[str, Any] = coco(info={"annotator": "ann", "parts": [{"annotations": 3}]})
    template = content["annotations"][0]
    content["annotations"] = [
        {**template, "id": number, "segmentation": [], "iscrowd": number % 2, "attributes": {"note": 'é]}, "x": ['}}
        for number in range(40)
    ] + [{"image_id": 99}, 5, {**template, "bbox": ["1", 2, 3]}]
    text = json.dumps({key: content[key] for key in order}, indent=indent, ensure_ascii=False)
    pieces, whole = in_pieces_and_whole(text.encode(), monkeypatch)
    assert repr(pieces) == repr(whole)  # NaN is not equal to itself
    assert whole.counts.boxes_listed >= 40
    monkeypatch.setattr(coco_format, "_IN_PIECES_FROM_BYTES", 0)
    monkeypatch.setattr(coco_format, "parse_json", lambda *_: pytest.fail("read as a whole"))
    assert repr(parse_coco(text.encode(), "a.json")) == repr(whole)


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [{"annotations": [{"id": 1}], "id": 1, "file_name": "a"}], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [{"id": 1}], "annotations": [{"id": 2}], "categories": []}',
        '{"images": [], "annotations": [{"id": 1}], "\\u0061nnotations": [], "categories": []}',
        '{"images": [], "annotations": [{"parts": [{"id": 1}], "id": 2}], "categories": []}',
        '{"images": [], "annotations": [{"image_id": "\\ud800"}], "categories": []}',
        '{"images": [], "annotations": [{"image_id": 123456789012345678901234567890}], "categories": []}',
        '{"images": [], "annotations": [{"bbox": [NaN, 1e999, 1, 1]}], "categories": []}',
        '{"images": [{"id": 1, "file_name": "\\"annotations\\": [{}], "}], "annotations": [], "categories": []}',
    ],
)
def test_what_cannot_be_cut_out_surely_is_read_as_a_whole(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, whole = in_pieces_and_whole(text.encode(), monkeypatch)
    assert pieces in (None, whole)
    monkeypatch.setattr(coco_format, "_IN_PIECES_FROM_BYTES", 0)
    assert parse_coco(text.encode(), "a.json") == whole


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_large_file_cut_short_is_truncated(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_format, "_IN_PIECES_FROM_BYTES", 0)
    content = json.dumps(coco(annotations=coco()["annotations"] * 20)).encode()
    with pytest.raises(TruncatedFileError):
        parse_coco(content[:-cut], "a.json")
