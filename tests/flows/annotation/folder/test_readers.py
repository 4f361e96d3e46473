"""What goes out in three layouts comes back in three layouts; rubbish ends in a named reason."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.annotation.providers.folder.image_index import ImageIndex, read_review_csv
from flows.annotation.providers.folder.parse_coco import parse_coco
from flows.annotation.providers.folder.parse_voc import parse_voc
from flows.annotation.providers.folder.parse_yolo import parse_class_names, parse_yolo
from flows.annotation.providers.folder.parsed import ParsedAnnotation, TruncatedFileError, UnsupportedFormatError
from flows.annotation.providers.folder.writers import OfferedImage, to_coco, to_voc, to_yolo, to_yolo_data_yaml
from tasks.data.schemas import AnnotationTask, Prediction

CLASSES = ("cat", "dog, small", "Ü 3")
WIDTH, HEIGHT = 1234, 567
Boxes = list[tuple[str, list[float]]]


def make_offered_image(predictions: list[Prediction]) -> OfferedImage:
    task = AnnotationTask(
        image_id="ab" * 8, uri="data/images/abababababababab.png", width_px=WIDTH, height_px=HEIGHT, rank=1,
        reason="", uncertainty=0.1, predictions=tuple(predictions), model_digest="",
    )  # fmt: skip
    return OfferedImage(task, "images/abababababababab.png", None)


def from_coco(image: OfferedImage) -> ParsedAnnotation:
    (said,) = parse_coco(json.dumps(to_coco([image], CLASSES, preannotated=True)).encode())
    return said


def from_yolo(image: OfferedImage) -> ParsedAnnotation:
    names = parse_class_names(to_yolo_data_yaml(CLASSES), "data.yaml")
    return parse_yolo(to_yolo(image.task, CLASSES), "labels/abababababababab.txt", names, (WIDTH, HEIGHT))


def from_voc(image: OfferedImage) -> ParsedAnnotation:
    return parse_voc(to_voc(image), "voc/abababababababab.xml")


def hundredths(limit: int) -> st.SearchStrategy[float]:
    return st.integers(0, limit * 100).map(lambda number: number / 100)


@st.composite
def predictions(draw: st.DrawFn) -> list[Prediction]:
    found = []
    for _ in range(draw(st.integers(0, 4))):
        (x1, x2), (y1, y2) = (sorted((draw(hundredths(side)), draw(hundredths(side)))) for side in (WIDTH, HEIGHT))
        if x2 - x1 > 1.05 and y2 - y1 > 1.05:
            corners = (x1, y1, x2, y2)
            found.append(Prediction(category=draw(st.sampled_from(CLASSES)), xyxy_px=corners, score=0.5))
    return found


@pytest.mark.parametrize("back", [from_coco, from_yolo, from_voc])
@given(drawn=predictions())
def test_boxes_come_back_where_they_were(
    back: Callable[[OfferedImage], ParsedAnnotation], dataset_folder: list[Prediction]
) -> None:
    image = make_offered_image(dataset_folder)
    said = back(image)
    assert said.problem is None
    assert ImageIndex([image]).find(said.image) == "ab" * 8
    assert [box["category"] for box in said.boxes] == [box.category for box in dataset_folder]
    for box, prediction in zip(said.boxes, dataset_folder, strict=True):
        assert box["xyxy_px"] == pytest.approx(prediction.xyxy_px, abs=0.02)


VALID_IMAGE = make_offered_image([Prediction(category="Ü 3", xyxy_px=(1, 2, 30, 40), score=0.5)])
FILES = {
    "coco": (json.dumps(to_coco([VALID_IMAGE], CLASSES, preannotated=True)).encode(), parse_coco),
    "voc": (to_voc(VALID_IMAGE), lambda content: parse_voc(content, "a.xml")),
}


@pytest.mark.parametrize("kind", list(FILES))
def test_a_file_cut_off_anywhere_is_left_for_later_and_never_an_answer(kind: str) -> None:
    content, read = FILES[kind]
    content = content.rstrip()
    for end in range(1, len(content)):
        with pytest.raises((TruncatedFileError, UnsupportedFormatError)) as caught:
            read(content[:end])
        if content[end - 1 : end] not in b"}]>":
            assert caught.type is TruncatedFileError, content[:end]


@pytest.mark.parametrize("kind", list(FILES))
@given(data=st.data())
def test_damaged_files_end_in_answers_or_a_reason(kind: str, data: st.DataObject) -> None:
    content, read = FILES[kind]
    damaged = bytearray(content)
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        damaged[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TruncatedFileError, UnsupportedFormatError):
        read(bytes(damaged))


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))


@given(images=st.lists(json_values()), annotations=st.lists(json_values()), info=json_values(), done=json_values())
def test_any_json_in_the_place_of_coco_is_survived(images: Any, annotations: Any, info: Any, done: Any) -> None:
    good = {"id": 1, "file_name": "a.png"}
    document = {"images": [good, *images], "annotations": annotations, "categories": [*images, {"id": 1, "name": "c"}]}
    said = parse_coco(json.dumps({**document, "info": info, "reviewed": done}).encode())
    assert [one.image for one in said if one.image == "a.png"]


@given(lines=st.lists(st.text(alphabet="0123456789.e-+ nainf\t", max_size=40)))
def test_any_text_in_the_place_of_yolo_is_survived(lines: list[str]) -> None:
    said = parse_yolo("\n".join(lines).encode(), "a.txt", CLASSES, (10, 10))
    assert said.problem or len(said.boxes) == sum(bool(line.strip()) for line in lines)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.1", "fields are 4"),
        ("0 0.5 0.5 0.1 0.1 0.9", "fields are 6"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", "fields are 7"),
        ("3 0.5 0.5 0.1 0.1", "class is 3, expected 0 to 2"),
        ("-1 0.5 0.5 0.1 0.1", "class is -1"),
        ("0 320 240 64 64", "fractions of the image"),
        ("0 nan 0.5 0.1 0.1", "fractions of the image"),
        ("cat 0.5 0.5 0.1 0.1", "five numbers"),
    ],
)
def test_a_line_that_is_no_box_names_itself(line: str, reason: str) -> None:
    said = parse_yolo(f"0 0.5 0.5 0.1 0.1\n{line}\n".encode(), "a.txt", CLASSES, (10, 10))
    assert said.problem is not None
    assert said.problem.startswith("line 2: ")
    assert reason in said.problem


def test_class_names_from_lists_and_yaml() -> None:
    assert parse_class_names(b"cat\ndog\n\n", "classes.txt") == ["cat", "dog"]
    assert parse_class_names(b"names:\n  1: dog\n  0: cat\n", "data.yaml") == ["cat", "dog"]
    assert parse_class_names(b"nc: 2\nnames: [cat, 3]\n", "data.yml") == ["cat", "3"]
    for content in (b"names: {1: dog, 2: cat}", b"train: here", b"names: [[a]]", b"a: [", b"&a [*a]"):
        with pytest.raises(UnsupportedFormatError):
            parse_class_names(content, "data.yaml")


def test_marks_in_the_separators_spreadsheets_use() -> None:
    for separator in ",;\t":
        text = f"image{separator}annotator{separator}seconds_spent\na.png{separator}Jo{separator}12,5\n"
        content = text.replace("12,5", "12.5").encode("utf-8-sig")
        (mark,) = read_review_csv(content)
        assert (mark.image, mark.annotator, mark.seconds_spent, mark.status) == ("a.png", "Jo", 12.5, None)
    assert [mark.image for mark in read_review_csv(b"image\r\na\r\n\r\n*\r\n")] == ["a", "*"]
    for content in (b"", b"name,done\na,1\n", b"image,boxes\na,1\n"):
        with pytest.raises(UnsupportedFormatError, match="columns are"):
            list(read_review_csv(content))


def test_a_name_that_climbs_or_fits_two_images_means_none() -> None:
    one, other = make_offered_image([]), make_offered_image([])
    names = ImageIndex([one])
    for name in (
        "abababababababab",
        "abababababababab.jpg",
        "x/y/abababababababab.png",
        "C:\\work\\abababababababab.png",
    ):
        assert names.find(name) == "ab" * 8
    for name in ("../abababababababab.png", "a/../abababababababab.png", "..\\abababababababab.png", "", "."):
        assert names.find(name) is None
    same = {"uri": "s3://bucket/a/1.png"}, {"uri": "s3://bucket/b/1.png", "image_id": "cd" * 8}
    one, other = (
        OfferedImage(o.task.model_copy(update=u), u["uri"], None) for o, u in zip((one, other), same, strict=True)
    )
    both = ImageIndex([one, other])
    assert both.find("1.png") is None
    assert (both.find("s3://bucket/a/1.png"), both.find("s3://bucket/b/1.png")) == ("ab" * 8, "cd" * 8)
