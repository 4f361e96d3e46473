"""Situations that people report of annotation files: each is read as a careful colleague would read it."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.data.dataset_import import ImportedDataset, import_dataset
from tasks.data.dataset_source import DatasetSource
from tasks.data.import_policy import ImportPolicy
from tasks.data.import_report import Reason
from tasks.runtime.errors import UserError

SIZE = (96, 72)
Entry = tuple[str, tuple[int, int], list[tuple[str, tuple[float, float, float, float]]]]
Document = dict[str, Any]


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(90, 140, (size[1], size[0], 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def draw(folder: Path, names: Sequence[str], size: tuple[int, int] = SIZE) -> list[Entry]:
    """Write a picture for each name; two boxes on each."""
    entries: list[Entry] = []
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, size).save(path)
        entries.append((name, size, [("bolt", (4 + number, 5, 20, 16)), ("nut", (40, 30 + number, 18, 14))]))
    return entries


def coco(entries: Sequence[Entry], classes: Sequence[str] = ("bolt", "nut")) -> Document:
    numbers = {name: number for number, name in enumerate(classes, 1)}
    images, annotations = [], []
    for number, (name, (width, height), boxes) in enumerate(entries, 1):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for category, box in boxes:
            key = len(annotations) + 1
            entry = {"id": key, "image_id": number, "category_id": numbers[category], "bbox": list(box), "iscrowd": 0}
            annotations.append(entry)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def voc(entry: Entry, extra: str = "") -> str:
    name, (width, height), boxes = entry
    objects = "".join(
        f"<object><name>{category}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
        f"<ymax>{y + h}</ymax></bndbox>{extra}</object>"
        for category, (x, y, w, h) in boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


def read(images: Path, annotations: Path | Document, **options: Any) -> ImportedDataset:
    """Import, and check that the accounts balance."""
    if isinstance(annotations, dict):
        path = images.parent / "annotations.json"
        path.write_text(json.dumps(annotations), encoding="utf-8")
        annotations = path
    policy = ImportPolicy(**options.pop("policy", {}))
    source = DatasetSource(annotations=annotations, images=images, policy=policy, **options)
    result = import_dataset(source, max_pixels=100_000)
    assert all(account.balances for account in result.accounts), [a.describe() for a in result.accounts]
    return result


def names(result: ImportedDataset, *, labeled: bool = True) -> list[str]:
    return sorted(record.file_name for record in result.pool if (record.boxes is not None) is labeled)


def codes(result: ImportedDataset) -> dict[str, Reason]:
    return {entry.item: entry.code for entry in result.report.rejected}


def listed(result: ImportedDataset) -> dict[str, int]:
    return {part: number for part, number in result.accounts[1].parts.items() if number}


def refused(result: ImportedDataset) -> dict[str, int]:
    return {part: number for part, number in result.accounts[2].details["refused"].items() if number}


P8 = [f"p{n}.png" for n in range(8)]


@pytest.mark.parametrize("prefix", ["images\\", "..\\..\\media\\upload\\4\\", "../../media/upload/4/", "C:\\photos\\"])
def test_paths_of_other_machines_are_found_by_their_last_part(images: Path, prefix: str) -> None:
    entries = [(prefix + name, size, boxes) for name, size, boxes in draw(images, P8)]
    assert names(read(images, coco(entries))) == P8
    half = [(name if number % 2 else prefix + name, *rest) for number, (name, *rest) in enumerate(draw(images, P8))]
    assert names(read(images, coco(half))) == P8  # type: ignore[arg-type]


def test_rotated_boxes_are_refused_by_name_in_coco_and_voc(images: Path, tmp_path: Path) -> None:
    entries = draw(images, P8[:4])
    document = coco(entries)
    for annotation in document["annotations"]:
        annotation["attributes"] = {"rotation": 37.5 if annotation["image_id"] == 1 else 0.0}
    turned = "<attributes><attribute><name>rotation</name><value>37.5</value></attribute></attributes>"
    for number, entry in enumerate(entries):
        sheet = (tmp_path / "xml" / entry[0]).with_suffix(".xml")
        sheet.parent.mkdir(exist_ok=True)
        sheet.write_text(voc(entry, turned if number == 0 else ""))
    for annotations in (document, tmp_path / "xml"):
        result = read(images, annotations)
        assert codes(result) == {"p0.png": Reason.BOX_REFUSED}
        assert refused(result) == {"rotated": 2}
        assert names(result, labeled=False) == []
        converted = read(images, annotations, policy={"polygons": "box"})
        assert len(names(converted)) == 4
        assert Reason.SHAPE_CONVERTED in {note.code for note in converted.report.notes}


def test_polygons_count_by_the_box_beside_them_or_where_the_user_says_so(images: Path) -> None:
    document = coco(draw(images, P8[:3]))
    triangle = [[10, 10, 40, 10, 25, 30]]
    document["annotations"][0] |= {"segmentation": triangle}
    document["annotations"][2] |= {"segmentation": triangle, "bbox": []}
    result = read(images, document)
    assert (names(result), refused(result)) == (
        ["p0.png", "p2.png"],
        {"polygon or mask without a box": 1, "image set aside": 1},
    )
    converted = read(images, document, policy={"polygons": "box"})
    record = next(record for record in converted.pool if record.file_name == "p1.png")
    assert record.boxes is not None
    assert record.boxes[0].xyxy_px == (10, 10, 40, 30)


def test_crowd_and_ignored_regions_are_no_objects(images: Path) -> None:
    document = coco(draw(images, P8[:3]))
    document["annotations"][0]["iscrowd"] = 1
    document["annotations"][2]["ignore"] = 1
    for annotation in document["annotations"][4:]:
        annotation["iscrowd"] = 1
    document["annotations"][4]["bbox"] = document["annotations"][1]["bbox"] = [0, 0, 96, 72]
    result = read(images, document)
    assert result.accounts[2].parts == {"kept": 2, "clipped": 0, "crowd or ignored regions": 4, "refused": 0}
    assert (names(result), codes(result), listed(result)) == (P8[:3], {}, {"annotated": 3})
    marked = {r.file_name: (len(r.boxes), r.boxes.crowd_regions()) for r in result.pool if r.boxes is not None}
    assert [(number, len(regions)) for number, regions in marked.values()].count((1, 1)) == 2
    assert marked["p2.png"][0] == 0  # labeled, though it has no object
    assert [box.xyxy_px for box in marked["p2.png"][1]] == [(0, 0, 96, 72), (40, 32, 58, 46)]
    assert [note.reason for note in result.report.notes if note.code == Reason.REGION][-1].startswith("2 crowd")


def test_a_crowd_region_counts_by_its_bounding_box_and_by_the_rule_of_boxes(images: Path) -> None:
    document = coco(draw(images, P8[:2]))
    document["annotations"][0] |= {"iscrowd": 1, "segmentation": [[10, 10, 40, 10, 25, 30]], "bbox": []}
    document["annotations"][2] |= {"iscrowd": 1, "bbox": [80, 60, 90, 90]}
    result = read(images, document)
    record = next(record for record in result.pool if record.file_name == "p0.png")
    assert record.boxes is not None
    assert [box.xyxy_px for box in record.boxes.crowd_regions()] == [(10, 10, 40, 30)]
    assert codes(result) == {"p1.png": Reason.BOX_REFUSED}  # what is in the region would become background
    assert result.accounts[2].parts["crowd or ignored regions"] == 1


@pytest.mark.parametrize("ending", [".xml", ".XML"])
def test_voc_sheets_in_subfolders_and_of_other_endings(images: Path, tmp_path: Path, ending: str) -> None:
    entries = draw(images, [f"{'day' if n < 4 else 'night'}/p{n}.png" for n in range(8)])
    for name, size, boxes in entries:
        path = Path(name) if name.startswith("night") else Path(Path(name).name)
        sheet = (tmp_path / "xml" / path).with_suffix(ending)
        sheet.parent.mkdir(parents=True, exist_ok=True)
        sheet.write_text(voc((path.name, size, boxes)))
    assert len(names(read(images, tmp_path / "xml", annotation_format="voc"))) == 8
    assert len(names(read(images, tmp_path / "xml"))) == 8


def test_letter_case_and_endings_do_not_matter_where_a_name_is_unique(images: Path) -> None:
    files = [f"DSC_{n}.{'PNG' if n % 2 else 'png'}" for n in range(6)]
    entries = [(name.lower(), *rest) for name, *rest in draw(images, files)]
    assert len(names(read(images, coco(entries)))) == 6  # type: ignore[arg-type]


def test_ambiguous_names_are_refused_and_all_they_may_mean_is_set_aside(images: Path) -> None:
    entries = draw(images, ["a/p.png", "b/p.png", "c/q.png"])
    entries[0] = ("p.png", *entries[0][1:])
    result = read(images, coco([entries[0], entries[2]]))
    assert set(codes(result)) == {"p.png", "a/p.png", "b/p.png"}
    assert set(codes(result).values()) == {Reason.NAME_AMBIGUOUS}
    assert (names(result), names(result, labeled=False)) == (["c/q.png"], [])


def test_an_annotated_image_that_is_not_found_is_named_and_the_unlisted_ones_pointed_out(images: Path) -> None:
    entries = draw(images, P8[:4])
    entries[0] = ("elsewhere.png", *entries[0][1:])
    result = read(images, coco(entries))
    assert codes(result) == {"elsewhere.png": Reason.IMAGE_NOT_FOUND}
    assert listed(result) == {"annotated": 3, "not found": 1}
    assert Reason.MAYBE_UNLISTED in {note.code for note in result.report.notes}


def test_a_name_that_is_no_utf8_is_set_aside(images: Path) -> None:
    entries = draw(images, P8[:3])
    os.rename(images / "p2.png", os.fsencode(images) + b"/T\xfcr.png")
    listed_too = ("\ud800x.png", *entries[1][1:])  # as JSON may write it
    result = read(images, coco([*entries[:2], listed_too]))
    assert codes(result) == {"T\\xfcr.png": Reason.IMAGE_UNREADABLE, "\\ud800x.png": Reason.IMAGE_NOT_FOUND}
    assert names(result) == P8[:2]


def test_boxes_keep_the_rules_of_returned_labels(images: Path) -> None:
    entries = draw(images, P8[:4])
    document = coco(entries)
    document["annotations"][0]["bbox"] = [50, 20, 1e-6, 9]
    document["annotations"].append({**document["annotations"][3], "id": 99})
    document["annotations"][4]["bbox"] = [-0.5, 5, 20, 16]
    result = read(images, document)
    assert refused(result) == {"too small": 1, "drawn twice": 1, "image set aside": 1}
    assert (result.accounts[2].parts["clipped"], codes(result)) == (1, {"p0.png": Reason.BOX_REFUSED})


def test_fractions_in_a_pixel_format_are_named(images: Path) -> None:
    entries = draw(images, P8[:3])
    fractions = [(n, s, [(c, (x / 96, y / 72, w / 96, h / 72)) for c, (x, y, w, h) in b]) for n, s, b in entries]
    with pytest.raises(UserError, match="fractions of the image, expected pixels"):
        read(images, coco(fractions))  # type: ignore[arg-type]


def test_classes_without_a_box_are_kept_and_group_classes_are_none(images: Path) -> None:
    document = coco(draw(images, P8[:3]), classes=("bolt", "nut", "crack"))
    document["categories"] = [{"id": 0, "name": "parts", "supercategory": "none"}] + [
        {**known, "supercategory": "parts"} for known in document["categories"]
    ]
    assert read(images, document).class_names == ("bolt", "nut", "crack")
    assert read(images, document, classes=("crack", "dent")).class_names == ("crack", "dent", "bolt", "nut")


def test_odd_class_names_are_kept_and_near_equal_ones_pointed_out(images: Path) -> None:
    odd = ["no", "1e3", "a: b, c", "# hash", "螺栓 🔩", "null", "~", "Bolt", "bolt"]
    document = coco(draw(images, P8[:5]))
    document["categories"] = [{"id": number, "name": name} for number, name in enumerate(odd)]
    for number, annotation in enumerate(document["annotations"]):
        annotation["category_id"] = number % len(odd)
    result = read(images, document)
    assert result.class_names == tuple(odd)
    assert [note.code for note in result.report.notes] == [Reason.CLASSES_NEARLY_EQUAL]


EDITS: dict[str, Callable[[Document], Any]] = {
    "category ids as text": lambda d: [a.update(category_id=str(a["category_id"])) for a in d["annotations"]],
    "image ids as text": lambda d: [i.update(id=str(i["id"])) for i in d["images"]],
    "iscrowd null": lambda d: [a.update(iscrowd=None) for a in d["annotations"]],
    "boxes as text": lambda d: [a.update(bbox=[str(v) for v in a["bbox"]]) for a in d["annotations"]],
    "sizes blank": lambda d: [i.update(width="", height="") for i in d["images"]],
    "all annotation ids 0": lambda d: [a.update(id=0) for a in d["annotations"]],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_what_tools_write_otherwise_is_read(images: Path, edit: Callable[[Document], Any]) -> None:
    document = coco(draw(images, P8))
    edit(document)
    result = read(images, document)
    assert names(result) == P8
    assert result.accounts[2].parts["kept"] == 16


def test_other_picture_files_are_read_or_named_and_the_rest_counted_by_ending(images: Path) -> None:
    entries = draw(images, P8[:2])
    picture(50).save(images / "a.jfif", "JPEG")
    picture(51).save(images / "c.gif")
    (images / "g.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(500))
    picture(52).save(images / "i.tif", save_all=True, append_images=[picture(53)])
    for name in ("notes.txt", "x.jp2", "y.jp2"):
        (images / name).write_bytes(b"?")
    result = read(images, coco(entries))
    for name in ("d.ppm", "e.avif"):
        picture(54 + ord(name[0])).save(images / name)
    result = read(images, coco(entries))
    assert names(result, labeled=False) == ["a.jfif", "c.gif", "d.ppm", "e.avif", "i.tif"]
    assert set(codes(result)) == {"g.heic"}
    assert result.accounts[0].details["passed over"] == {".jp2": 2, ".txt": 1}
    assert [(note.code, note.item) for note in result.report.notes] == [(Reason.FIRST_FRAME, "i.tif")]


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_listed_without_boxes_is_unlabeled_unless_somebody_says_otherwise(
    images: Path, tmp_path: Path, kind: str
) -> None:
    entries = [(n, s, b if n < "p3" else []) for n, s, b in draw(images, P8)]
    annotations: Path | Document = coco(entries)
    if kind == "voc":
        (tmp_path / "xml").mkdir()
        for entry in entries:
            (tmp_path / "xml" / entry[0]).with_suffix(".xml").write_text(voc(entry))
        annotations = tmp_path / "xml"
    result = read(images, annotations)
    assert listed(result) == {"annotated": 3, "unlabeled": 5}
    assert names(result, labeled=False) == P8[3:]
    assert listed(read(images, annotations, policy={"unannotated": "empty"})) == {"annotated": 3, "empty": 5}


def test_in_validation_unreviewed_images_are_left_out_and_counted(images: Path, tmp_path: Path) -> None:
    entries = draw(images, P8)
    val = tmp_path / "val.json"
    val.write_text(json.dumps(coco([entries[0], (entries[1][0], SIZE, [])])))
    document = coco(entries[2:])
    result = read(images, document, val=val)
    assert [record.file_name for record in result.val or ()] == ["p0.png"]
    assert [(entry.code, entry.item) for entry in result.report.left_out] == [(Reason.NOT_REVIEWED, "p1.png")]
    assert "p1.png" not in names(result, labeled=False)
    kept = read(images, document, val=val, policy={"unannotated": "empty"})
    assert sorted(record.file_name for record in kept.val or ()) == ["p0.png", "p1.png"]


def test_links_are_followed_where_the_user_allows_it(images: Path, tmp_path: Path) -> None:
    entries = draw(tmp_path / "store", P8[:4])
    images.mkdir()
    for name in P8[:3]:
        (images / name).symlink_to(tmp_path / "store" / name)
    with pytest.raises(UserError, match=r"3 files are links, expected images\. Follow them with --follow-links"):
        read(images, coco(entries[:3]))
    assert names(read(images, coco(entries[:3]), policy={"follow_links": True})) == P8[:3]
    (images / "sub").symlink_to(tmp_path / "store")
    (images / "own.png").write_bytes((tmp_path / "store" / "p3.png").read_bytes())
    result = read(images, coco([("own.png", *entries[3][1:])]))
    assert set(codes(result).values()) == {Reason.LINK_NOT_FOLLOWED}
    assert names(result) == ["own.png"]


def test_boxes_drawn_before_the_exif_turn_are_noticed(images: Path) -> None:
    images.mkdir()
    entries = []
    for number, (turn, size) in enumerate([(6, SIZE), (3, SIZE), (6, (72, 72)), (1, SIZE)]):
        exif = Image.Exif()
        exif[0x0112] = turn
        picture(number, size).save(images / f"p{number}.jpg", exif=exif)
        entries.append((f"p{number}.jpg", size, [("bolt", (40.0, 20.0, 30.0, 20.0))]))
    result = read(images, coco(entries))
    assert codes(result) == {"p0.jpg": Reason.DRAWN_BEFORE_TURN}
    assert "before the EXIF turn" in result.report.rejected[0].reason
    assert sorted(note.item for note in result.report.notes if note.code == Reason.EXIF_TURN) == ["p1.jpg", "p2.jpg"]


def test_another_size_than_annotated_sets_the_image_aside(images: Path) -> None:
    entries = draw(images, P8[:3])
    entries[0] = (entries[0][0], (500, 400), entries[0][2])
    assert codes(read(images, coco(entries))) == {"p0.png": Reason.SIZE_DIFFERS}


def test_several_different_annotations_of_one_image_set_it_aside(images: Path) -> None:
    entries = draw(images, P8[:3])
    first = ("x\\p0.png", *entries[0][1:])
    result = read(images, coco([first, *entries[1:], ("y/p0.png", *entries[0][1:])]))
    assert listed(result) == {"annotated": 3, "listed again": 1}
    other: Entry = ("y/p0.png", SIZE, [("nut", (1.0, 2.0, 30.0, 30.0))])
    result = read(images, coco([first, *entries[1:], other]))
    assert codes(result) == {"p0.png": Reason.SEVERAL_ANSWERS}
    assert names(result) == ["p1.png", "p2.png"]


def test_yolo_labels_with_classes_beside_them_or_from_the_user(images: Path, tmp_path: Path) -> None:
    draw(images, P8[:4])
    labels = tmp_path / "labels"
    labels.mkdir()
    for name, content in (("p0", b"1.0 0.5 0.5 0.2 0.2\n"), ("p1", b"\xef\xbb\xbf0 0.5 0.5 0.25 0.5\r\n"), ("p2", b"")):
        (labels / f"{name}.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"the class names are missing.*--classes"):
        read(images, labels, annotation_format="yolo")
    result = read(images, labels, annotation_format="yolo", classes=("bolt", "nut"))
    boxes = {record.file_name: list(record.boxes or ()) for record in result.pool}
    assert boxes["p0.png"][0].category == "nut"
    assert boxes["p1.png"][0].xyxy_px == (36, 18, 60, 54)
    assert listed(result) == {"annotated": 2, "unlabeled": 1}
    (tmp_path / "classes.txt").write_bytes(b"washer\n\nbolt\n")
    again = read(images, labels, annotation_format="yolo")
    # Numbers count the blank line.
    assert codes(again) == {"p0.png": Reason.BOX_REFUSED, "labels": Reason.CLASS_BROKEN}
