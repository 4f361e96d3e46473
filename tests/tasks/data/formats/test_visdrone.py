from pathlib import Path

import pytest
from PIL import Image

from tasks.data.archives import open_source
from tasks.data.dataset_import import import_dataset
from tasks.data.dataset_source import DatasetSource
from tasks.data.formats.base import ParsedImage
from tasks.data.formats.detect import detect, split_of
from tasks.data.formats.recognize import recognize
from tasks.data.formats.visdrone import CATEGORIES, CLASSES, is_visdrone, parse_visdrone, parse_visdrone_files
from tests.tasks.data.formats.samples import problems, shapes

CAR = b"10,20,30,15,1,4,0,1\n"
REGION = b"40,30,20,20,0,0,0,0\n"
LEFT_OUT = b"5,5,10,10,0,11,0,0\n"


def read(content: bytes) -> ParsedImage:
    return parse_visdrone(content, "VisDrone2019-DET-train/annotations/0001.txt")


@pytest.mark.parametrize("content", [CAR, CAR.replace(b"\n", b",\r\n"), b"\xef\xbb\xbf 10, 20, 30, 15, 1, 4, 0, 1"])
def test_a_line_is_a_box(content: bytes) -> None:
    one = read(content)
    assert shapes(one) == [("car", (10, 20, 40, 35), "box")]
    assert (one.boxes[0].is_crowd, one.boxes[0].is_ignored) == (False, False)
    assert one.alternative_names == ("VisDrone2019-DET-train/images/0001.txt",)


def test_every_category_has_its_name() -> None:
    lines = "".join(f"1,1,9,9,1,{number},0,0\n" for number in range(1, 12))
    assert tuple(box.category for box in read(lines.encode()).boxes) == CLASSES == CATEGORIES[1:]
    assert len(CATEGORIES) == 12


def test_an_ignored_region_is_a_crowd_region_of_every_class() -> None:
    one = read(CAR + REGION)
    assert one.boxes[0].category == "car"
    regions = one.boxes[1:]
    assert [box.category for box in regions] == list(CLASSES)
    assert {(box.is_crowd, box.xyxy, box.entry) for box in regions} == {(True, (40, 30, 60, 50), "line 2")}


def test_score_zero_leaves_an_object_out_of_evaluation() -> None:
    (box,) = read(LEFT_OUT).boxes
    assert (box.category, box.is_ignored, box.is_crowd) == ("others", True, False)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"10,20,30,15,1,4,0", "the numbers of the line are 7, expected 8: left, top, width, height, score"),
        (b"10,20,30,15,1,4,0,1,7", "the numbers of the line are 9"),
        (b"10,20,30,15,1,12,0,1", "category is '12', expected a whole number from 0 to 11"),
        (b"10,20,30,15,1,4.5,0,1", "category is '4.5'"),
        (b"10,20,30,15,0.9,4,0,1", "score is '0.9', expected a whole number from 0 to 1"),
        (b"10,20,30,15,1,4,2,1", "truncation is '2'"),
        (b"10,20,30,15,1,4,0,3", "occlusion is '3'"),
        (b"10,20,x,15,1,4,0,1", "width is 'x', expected a number"),
        (b"10,20,inf,15,1,4,0,1", "width is 'inf', expected a number"),
        (b"10,20,-3,15,1,4,0,1", "width and height are -3 and 15, expected 0 or more"),
        (b"car", "the numbers of the line are 1"),
    ],
)
def test_what_is_wrong_with_a_line_is_named_and_the_others_stand(line: bytes, words: str) -> None:
    one = read(CAR + line)
    assert words in problems(one)[0]
    assert (one.boxes[0].problem, one.boxes[1].entry) == (None, "line 2")


def test_a_folder_is_one_document_whose_accounts_balance() -> None:
    files = [("a.txt", CAR + REGION), ("b.txt", b""), ("c.txt", CAR + b"1,2\n")]
    parsed = parse_visdrone_files(files, "annotations")
    assert (parsed.format, parsed.class_names) == ("visdrone", CLASSES)
    assert [one.is_usable for one in parsed.images] == [True, True, False]
    counts = parsed.counts
    assert counts.balance
    assert (counts.boxes_listed, counts.boxes_crowd, counts.boxes_with_problem) == (14, 11, 1)


def test_only_annotations_are_recognized() -> None:
    assert is_visdrone((CAR + REGION).decode().splitlines())
    assert not is_visdrone([])
    detections = b"10,20,30,15,0.87,4,-1,-1\n"
    assert recognize("a.txt", detections, detections, detections) == "other"
    assert recognize("a.txt", CAR, CAR, CAR) == "visdrone"


@pytest.mark.parametrize(
    ("folder", "split"),
    [("VisDrone2019-DET-train", "train"), ("visdrone2018-det-val", "val"), ("VisDrone2019-DET-test-dev", "test")],
)
def test_its_folders_name_splits(folder: str, split: str) -> None:
    assert split_of(f"{folder}/annotations/0001.txt") == split
    assert split_of("drone-train/annotations/0001.txt", folders_only=True) == "all"


def test_an_export_becomes_a_campaign(tmp_path: Path) -> None:
    root = tmp_path / "set"
    labels = {
        "VisDrone2019-DET-train/annotations/1": CAR + REGION,
        "VisDrone2019-DET-train/annotations/2": REGION,
        "VisDrone2019-DET-train/annotations/3": CAR + LEFT_OUT,
        "VisDrone2019-DET-train/annotations/4": CAR + b"1,2,3\n",
        "VisDrone2019-DET-train/annotations/5": b"",
        "VisDrone2019-DET-val/annotations/6": CAR,
    }
    for number, (name, content) in enumerate(labels.items()):
        picture = root / f"{name.replace('annotations', 'images')}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), (number, 80, 80)).save(picture)
        (root / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.txt").write_bytes(content)
    detected = detect(open_source(root)).only()
    assert [(split.split, len(split.annotations)) for split in detected.splits] == [("train", 5), ("val", 1)]
    result = import_dataset(DatasetSource(dataset=root), max_pixels=10_000)
    assert all(account.balances for account in result.accounts)
    parts = {part: number for part, number in result.accounts[1].parts.items() if number}
    assert parts == {"annotated": 4, "unlabeled": 1, "set aside": 1}
    records = {record.file_name[-5:]: record for record in result.pool}
    boxes = {name: (len(record.boxes or ()), record.boxes) for name, record in records.items()}
    assert {name: number for name, (number, _) in boxes.items()} == {"1.png": 1, "2.png": 0, "3.png": 1, "5.png": 0}
    regions = {name: len(found.crowd_regions()) for name, (_, found) in boxes.items() if found is not None}
    assert regions == {"1.png": 11, "2.png": 11, "3.png": 1}
    ((_, item, reason),) = result.report.refused_boxes
    assert item.endswith("4.png: line 2")
    assert "the numbers of the line are 3, expected 8" in reason
