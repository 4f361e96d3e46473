"""Files of an inbox: their formats, their images, and anything that is damaged."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.annotation.providers.folder import read_inbox
from flows.annotation.providers.folder_inbox import BatchIndex, InboxReader, read_review_csv
from flows.annotation.providers.folder_outbox import OfferedImage, preannotation_files
from tasks.data.errors import UnsupportedFormatError
from tasks.data.formats.base import ParsedImage
from tasks.data.schemas import AnnotationTask, Prediction, RunnerUp
from tasks.storage.backends import FileEntry

CREATED_AT = "2026-03-01T10:00:00+00:00"
CLASSES = ("cat", "dog, small", "Ü 3")
WIDTH, HEIGHT = 1234, 567
IMAGE_ID = "ab" * 8


class MemoryStorage:
    """A storage of files that were written long ago."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    def check(self) -> None:
        pass

    def uri(self, name: str) -> str:
        return f"memory:{name}"

    def list_files(self, folder: str) -> list[FileEntry]:
        written_at = datetime(2026, 3, 1, tzinfo=UTC)
        return [FileEntry(name, len(content), written_at, "1", name) for name, content in self._contents.items()]

    def read(self, entry: FileEntry) -> bytes:
        return self._contents[entry.name]

    def read_optional(self, name: str) -> bytes | None:
        return self._contents.get(name)

    def write(self, name: str, content: bytes) -> None:
        raise NotImplementedError

    def write_batch(self, folder: str, contents: Mapping[str, bytes | Path], complete: bytes) -> None:
        raise NotImplementedError


def make_offered_image(*predictions: Prediction, image_id: str = IMAGE_ID, uri: str = "") -> OfferedImage:
    task = AnnotationTask(
        image_id=image_id, uri=uri or f"data/images/{image_id}.png", width_px=WIDTH, height_px=HEIGHT, rank=1,
        reason="", uncertainty=0.1, predictions=predictions, model_digest="",
    )  # fmt: skip
    return OfferedImage(task, uri or f"images/{image_id}.png", None)


def read(contents: Mapping[str, bytes], *offered: OfferedImage) -> InboxReader:
    by_id = {image.task.image_id: image for image in offered}
    return InboxReader(MemoryStorage(contents), "inbox/batch-0001", by_id, CLASSES)


def hundredths(limit: int) -> st.SearchStrategy[float]:
    return st.integers(0, limit * 100).map(lambda number: number / 100)


@st.composite
def predictions(draw: st.DrawFn) -> list[Prediction]:
    found = []
    for _ in range(draw(st.integers(0, 4))):
        (x1, x2), (y1, y2) = (sorted((draw(hundredths(side)), draw(hundredths(side)))) for side in (WIDTH, HEIGHT))
        if x2 - x1 > 1.05 and y2 - y1 > 1.05:
            category = draw(st.sampled_from(CLASSES))
            second = draw(st.none() | st.builds(RunnerUp, category=st.sampled_from(CLASSES), score=st.just(0.375)))
            found.append(Prediction(category=category, xyxy_px=(x1, y1, x2, y2), score=0.5, runner_up=second))
    return found


@given(predictions())
def test_published_preannotations_are_read_with_the_same_boxes_and_finish_no_image(drawn: list[Prediction]) -> None:
    image = make_offered_image(*drawn)
    contents = dict(preannotation_files([image], CLASSES, CREATED_AT, "/share/outbox/batch-0001"))
    entries = json.loads(contents["coco.json"])["annotations"]
    named = [prediction.runner_up and prediction.runner_up.model_dump() for prediction in drawn]
    assert [entry.get("runner_up") for entry in entries] == named
    reader = read(contents, image)
    assert reader.problems == []
    assert sorted(found.entry.name for found in reader.annotations) == sorted({*contents} - {"yolo/data.yaml"})
    for found in reader.annotations:
        assert found.image_id == IMAGE_ID
        is_manifest = found.entry.name.endswith(".manifest")  # in whole pixels, and as proposals of a model
        boxes = found.parsed.predicted if is_manifest else found.parsed.boxes
        assert [box.category for box in boxes] == [box.category for box in drawn]
        for box, prediction in zip(boxes, drawn, strict=True):
            assert box.xyxy == pytest.approx(prediction.xyxy_px, abs=0.5 if is_manifest else 0.01)
    inbox = read_inbox(MemoryStorage(contents), "inbox/batch-0001", [image], CLASSES, "annotator")
    assert (inbox.annotations, inbox.problems) == ([], [])


VALID = make_offered_image(Prediction(category="Ü 3", xyxy_px=(1, 2, 30, 40), score=0.5))
PUBLISHED = {
    name: content
    for name, content in preannotation_files([VALID], CLASSES, CREATED_AT, "/share/outbox/batch-0001")
    if not name.endswith(".yaml")
}


@pytest.mark.parametrize("name", list(PUBLISHED))
@given(data=st.data())
def test_a_damaged_file_ends_as_annotations_or_a_problem(name: str, data: st.DataObject) -> None:
    damaged = bytearray(PUBLISHED[name])
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=6)):
        damaged[position] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(damaged)))
    reader = read({name: bytes(damaged[:end])}, VALID)
    assert bool(reader.annotations) + bool(reader.problems) + bool(reader.unfinished) >= (end == len(damaged))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.endswith(".txt")])
def test_a_truncated_file_is_never_an_annotation(name: str) -> None:
    content = PUBLISHED[name].rstrip()
    for end in range(1, len(content)):
        reader = read({name: content[:end]}, VALID)
        assert reader.annotations == [], content[:end]
        assert reader.problems, content[:end]  # unchanged since long ago, so not read again


def test_review_marks_with_the_separators_of_spreadsheets() -> None:
    for separator in ",;\t":
        text = f"image{separator}annotator{separator}seconds_spent\na.png{separator}Jo{separator}12.5\n"
        (mark,) = read_review_csv(text.encode("utf-8-sig"), "reviewed.csv")
        assert (mark.image, mark.annotator, mark.seconds_spent, mark.status) == ("a.png", "Jo", 12.5, None)
    assert [mark.image for mark in read_review_csv(b"image\r\na\r\n\r\n*\r\n", "reviewed.csv")] == ["a", "*"]
    (decimal_comma,) = read_review_csv(b"image;seconds_spent\na.png;12,5\n", "reviewed.csv")
    assert decimal_comma.seconds_spent == "12,5"  # validation refuses it by name
    for content in (b"", b"name,done\na,1\n", b"image,boxes\na,1\n"):
        with pytest.raises(UnsupportedFormatError, match="columns are"):
            read_review_csv(content, "reviewed.csv")


@pytest.mark.parametrize(
    "name",
    [
        IMAGE_ID,
        f"{IMAGE_ID}.jpg",
        f"{IMAGE_ID.upper()}.PNG",
        f"x/y/{IMAGE_ID}.png",
        f"C:\\photos\\{IMAGE_ID}.png",
        f"../images/{IMAGE_ID}.png",
        f"ab12cd34-{IMAGE_ID}.png",
        f"/data/local-files/?d=data%2Fimages%2F{IMAGE_ID}.png",
    ],
)
def test_names_that_tools_write_are_matched(name: str) -> None:
    assert BatchIndex({IMAGE_ID: make_offered_image()}).find(name) == IMAGE_ID


def test_a_name_that_fits_two_images_of_a_bucket_is_refused_with_both() -> None:
    uris = {"ab" * 8: "s3://bucket/a/1.png", "cd" * 8: "s3://bucket/b/1.png"}
    index = BatchIndex({image_id: make_offered_image(image_id=image_id, uri=uri) for image_id, uri in uris.items()})
    assert index.find("1.png") is None
    assert {uri: index.find(uri) for uri in uris.values()} == {uri: image_id for image_id, uri in uris.items()}
    assert index.find(f"{'cd' * 8}.xml") == "cd" * 8
    ((image_id, reason, _),) = index.find_all([ParsedImage("1.png", "")])
    assert image_id is None
    assert all(uri in reason for uri in uris.values())
    for name in ("", ".", "2.png"):
        assert index.find(name) is None


def test_two_names_of_a_document_never_mean_the_same_image() -> None:
    index = BatchIndex({IMAGE_ID: make_offered_image()})
    alike = [ParsedImage(f"{folder}/{IMAGE_ID}.png", "") for folder in "ab"]
    assert [image_id for image_id, *_ in index.find_all(alike)] == [None, None]
    surer = [ParsedImage(f"images/{IMAGE_ID}.png", ""), ParsedImage(f"other/ab12cd34-{IMAGE_ID}.png", "")]
    assert [image_id for image_id, *_ in index.find_all(surer)] == [IMAGE_ID, None]
    repeated = [ParsedImage(f"{IMAGE_ID}.png", ""), ParsedImage(f"{IMAGE_ID}.png", "")]  # two annotators
    assert [image_id for image_id, *_ in index.find_all(repeated)] == [IMAGE_ID, IMAGE_ID]


def test_an_image_id_in_the_document_has_priority_over_its_name() -> None:
    other = "cd" * 8
    index = BatchIndex({IMAGE_ID: make_offered_image(), other: make_offered_image(image_id=other)})
    assert index.find_all([ParsedImage(f"{IMAGE_ID}.png", "", image_id=other)]) == [(other, "", None)]
    assert index.find_all([ParsedImage(f"{IMAGE_ID}.png", "", image_id="17")]) == [(IMAGE_ID, "", None)]
