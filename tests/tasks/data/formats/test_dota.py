from pathlib import Path

import pytest
from PIL import Image

from tasks.data.archives import open_source
from tasks.data.dataset_import import ImportedDataset, import_dataset
from tasks.data.dataset_source import DatasetSource
from tasks.data.formats.base import ParsedImage
from tasks.data.formats.detect import detect
from tasks.data.formats.dota import is_dota, parse_dota, parse_dota_files
from tasks.data.formats.recognize import recognize
from tasks.data.import_policy import ImportPolicy
from tests.tasks.data.formats.samples import problems, shapes

HEADER = b"imagesource:GoogleEarth\ngsd:0.146343\n"
SQUARE = b"10 20 30 20 30 50 10 50 plane 0\n"
TURNED = b"20.0 10.0 40.0 30.0 20.0 50.0 0.0 30.0 large-vehicle 1\n"


def read(content: bytes) -> ParsedImage:
    return parse_dota(content, "train/labelTxt/P0001.txt")


@pytest.mark.parametrize(
    "content", [SQUARE, HEADER + SQUARE, b"\xef\xbb\xbf" + HEADER.replace(b"\n", b"\r\n") + SQUARE]
)
def test_a_rectangle_along_the_sides_is_a_box(content: bytes) -> None:
    one = read(content)
    assert shapes(one) == [("plane", (10, 20, 30, 50), "box")]
    assert (one.boxes[0].has_stated_box, one.boxes[0].is_ignored) == (True, False)
    assert (one.name, one.alternative_names) == ("train/labelTxt/P0001.txt", ("train/images/P0001.txt",))


def test_a_turned_quadrilateral_is_a_polygon_with_its_enclosing_box() -> None:
    (box,) = read(HEADER + TURNED).boxes
    assert (box.category, box.xyxy, box.kind, box.has_stated_box) == (
        "large-vehicle",
        (0, 10, 40, 50),
        "polygon",
        False,
    )
    assert (box.is_ignored, box.entry) == (True, "line 3")


@pytest.mark.parametrize(("flag", "is_difficult"), [(b" 0", False), (b" 1", True), (b" 2", True), (b"", False)])
def test_difficult_may_be_two_or_missing(flag: bytes, is_difficult: bool) -> None:
    (box,) = read(b"10 20 30 20 30 50 10 50 ship" + flag).boxes
    assert (box.problem, box.is_ignored) == (None, is_difficult)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"10 20 30 20 30 50 10 plane 0", "the coordinates are '10 20 30 20 30 50 10 plane', expected numbers"),
        (b"10 20 30 20 30 50 plane 0", "the fields of the line are 8, expected 8 coordinates, a class and difficult"),
        (b"10 20 30 20 30 50 10 50 plane 0 1", "the fields of the line are 11"),
        (b"10 20 30 20 30 50 10 50 plane 3", "difficult is '3', expected 0, 1 or 2"),
        (b"10 20 30 20 nan 50 10 50 plane 0", "expected numbers"),
        (b"10 20 30 20 1e400 50 10 50 plane 0", "expected numbers"),
        (b".1 .2 .3 .2 .3 .5 .1 .5 plane 0", "fractions of the image, expected pixels"),
        (b"10 20 30 20 30 50 10 50 " + b"p" * 101 + b" 0", "expected 1 to 100 printable characters"),
        (b"plane", "the fields of the line are 1"),
    ],
)
def test_what_is_wrong_with_a_line_is_named_and_the_others_stand(line: bytes, words: str) -> None:
    one = read(SQUARE + line)
    assert words in problems(one)[0]
    assert (one.boxes[0].problem, one.boxes[1].entry) == (None, "line 2")


def test_a_folder_is_one_document_with_classes_in_their_order() -> None:
    files = [("a.txt", HEADER + SQUARE + b"plane\n"), ("b.txt", HEADER), ("c.txt", TURNED + SQUARE.replace(b"p", b"P"))]
    parsed = parse_dota_files(files, "labelTxt")
    assert (parsed.format, parsed.class_names) == ("dota", ("plane", "large-vehicle", "Plane"))
    assert parsed.near_equal_names == (("plane", "Plane"),)
    assert [one.is_usable for one in parsed.images] == [False, True, True]
    counts = parsed.counts
    assert counts.balance
    assert (counts.boxes_listed, counts.boxes_with_problem, counts.boxes_by_kind["polygon"]) == (4, 1, 1)


def test_dota_and_yolo_lines_are_told_apart() -> None:
    assert is_dota((HEADER + SQUARE + TURNED).decode().splitlines())
    assert is_dota(HEADER.decode().splitlines())
    assert not is_dota([])
    polygon = b"0 0.1 0.1 0.3 0.1 0.3 0.4 0.2 0.4 1\n"
    kinds = {name: recognize("a.txt", content, content, content) for name, content in {
        "dota": SQUARE, "headers": HEADER, "yolo": polygon, "other": SQUARE + b"plane at the top\n"
    }.items()}  # fmt: skip
    assert kinds == {"dota": "dota", "headers": "dota", "yolo": "yolo", "other": "other"}
    long_line = b"1 " * 8 + b"p" * 30_000 + b" x y"
    assert recognize("a.txt", long_line, long_line, long_line) == "other"


def export(root: Path) -> Path:
    """Two splits as the data set has them; one line of P2 is broken, P3 has headers only."""
    labels = {
        "train/labelTxt/P0": HEADER + SQUARE,
        "train/labelTxt/P1": HEADER + TURNED,
        "train/labelTxt/P2": HEADER + SQUARE + b"30 40 plane\n",
        "train/labelTxt/P3": HEADER,
        "train/labelTxt/P4": b"",
        "val/labelTxt/P5": HEADER + SQUARE,
    }
    for number, (name, content) in enumerate(labels.items()):
        picture = root / f"{name.replace('labelTxt', 'images')}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 60), (number, 80, 80)).save(picture)
        (root / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.txt").write_bytes(content)
    return root


def listed(result: ImportedDataset) -> dict[str, int]:
    assert all(account.balances for account in result.accounts)
    return {part: number for part, number in result.accounts[1].parts.items() if number}


def test_an_export_is_recognized_with_its_splits(tmp_path: Path) -> None:
    found = detect(open_source(export(tmp_path / "set"))).only()
    assert found.describe().startswith("DOTA text; train: 5 annotation files in train/labelTxt/, 5 images")
    assert [(split.split, len(split.annotations)) for split in found.splits] == [("train", 5), ("val", 1)]


def test_an_import_takes_enclosing_boxes_where_the_user_asks_and_difficult_objects_as_objects(tmp_path: Path) -> None:
    root = export(tmp_path / "set")
    source = DatasetSource(dataset=root, policy=ImportPolicy(polygons="box"))
    result = import_dataset(source, max_pixels=10_000)
    assert listed(result) == {"annotated": 3, "unlabeled": 2, "set aside": 1}
    boxes = {record.file_name: [(b.category, b.xyxy_px) for b in record.boxes or ()] for record in result.pool}
    assert boxes["train/images/P1.png"] == [("large-vehicle", (0, 10, 40, 50))]
    ((_, item, reason),) = result.report.refused_boxes
    assert (item, "expected 8 coordinates" in reason) == ("train/images/P2.png: line 4", True)
    strict = import_dataset(DatasetSource(dataset=root), max_pixels=10_000)
    assert listed(strict) == {"annotated": 2, "unlabeled": 2, "set aside": 2}


def test_the_format_can_be_named_for_a_folder_apart_from_its_images(tmp_path: Path) -> None:
    root = export(tmp_path / "set") / "train"
    source = DatasetSource("dota", root / "labelTxt", root / "images", policy=ImportPolicy(polygons="box"))
    assert listed(import_dataset(source, max_pixels=10_000)) == {"annotated": 2, "unlabeled": 2, "set aside": 1}
