import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.data.archives import open_source
from tasks.data.dataset_import import import_dataset
from tasks.data.dataset_source import DatasetSource
from tasks.data.errors import TruncatedFileError, UnsupportedFormatError
from tasks.data.formats.base import ParsedDocument, ParsedImage
from tasks.data.formats.detect import detect
from tasks.data.formats.ground_truth import parse_ground_truth, write_ground_truth
from tasks.data.formats.recognize import recognize
from tests.tasks.data.formats.samples import BOLT, NUT, document, image, problems, shapes

WHEN = "2026-03-02T08:00:00.527256"
BOX = {"class_id": 5, "left": 111, "top": 134, "width": 61, "height": 128}
SIZE = [{"width": 500, "height": 400, "depth": 3}]


def label(*boxes: Any, name: str = "bounding-box", **changes: Any) -> dict[str, Any]:
    """A label attribute with its metadata, as a job writes them."""
    metadata = {
        "objects": [{"confidence": 0.8} for _ in boxes],
        "class-map": {"0": "dog", "5": "horse"},
        "type": "groundtruth/object-detection",
        "human-annotated": "yes",
        "creation-date": WHEN,
        "job-name": "labeling-job/animals-1",
        **changes,
    }
    return {name: {"image_size": SIZE, "annotations": list(boxes)}, f"{name}-metadata": metadata}


def line(*attributes: dict[str, Any], ref: Any = "s3://bucket/photos/p1.jpg", **more: Any) -> str:
    entry = {"source-ref": ref, **more}
    for attribute in attributes:
        entry |= attribute
    return json.dumps(entry) + "\n"


def read(*lines: str) -> ParsedDocument:
    parsed = parse_ground_truth("".join(lines).encode(), "output.manifest")
    assert parsed.counts.balance
    return parsed


def only(*lines: str) -> ParsedImage:
    (one,) = read(*lines).images
    return one


def test_a_line_of_a_finished_job_is_a_reviewed_image() -> None:
    parsed = read(line(label(BOX, {**BOX, "class_id": 0, "left": 1.5}), image_id="ab" * 8))
    (one,) = parsed.images
    assert shapes(one) == [("horse", (111, 134, 172, 262), "box"), ("dog", (1.5, 134, 62.5, 262), "box")]
    assert (one.name, one.image_id, one.entry) == ("s3://bucket/photos/p1.jpg", "ab" * 8, "output.manifest: line 1")
    assert (one.status, one.annotator, one.width_px, one.height_px) == ("labeled", "animals-1", 500, 400)
    assert one.finished_at == f"{WHEN}+00:00"  # Ground Truth leaves out that its times are UTC
    assert [(known.id, known.name) for known in parsed.classes] == [(0, "dog"), (5, "horse")]


def test_an_answer_without_boxes_says_that_there_is_none_and_a_bare_line_says_nothing() -> None:
    parsed = read(line(label()), line(ref="s3://bucket/p2.jpg"))
    assert [(one.status, len(one.boxes)) for one in parsed.images] == [("empty", 0), (None, 0)]


def test_what_a_model_drew_is_a_proposal_that_nobody_has_confirmed() -> None:
    one = only(line(label(BOX, **{"human-annotated": "no"})))
    assert (one.status, len(one.boxes), one.is_usable) == (None, 0, True)
    assert [(box.category, box.xyxy, box.score) for box in one.predicted] == [("horse", (111, 134, 172, 262), 0.8)]


@pytest.mark.parametrize("is_later_first", [False, True])
def test_of_several_labels_the_newest_of_people_counts(is_later_first: bool) -> None:
    pre_drawn = label(BOX, BOX, name="gleaner", **{"human-annotated": "no", "creation-date": "2026-03-09T00:00:00"})
    first = label(BOX, name="first")
    later = label(
        {**BOX, "left": 7}, name="adjusted", **{"creation-date": "2026-03-02T08:00:01", "job-name": "x/later"}
    )
    order = [later, first, pre_drawn] if is_later_first else [pre_drawn, first, later]
    one = only(line(*order))
    assert [box.xyxy[0] for box in one.boxes] == [7]
    assert one.annotator == "later"


def test_a_failed_image_is_unlabeled_and_named() -> None:
    failed = label(**{"failure-reason": "ClientError: no consensus"})
    parsed = read(line(failed))
    assert [(one.status, one.is_usable) for one in parsed.images] == [(None, True)]
    assert "labeling failed ('ClientError: no consensus')" in parsed.notes[0].text
    assert parsed.notes[0].entry == "output.manifest: line 1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (line(label({**BOX, "class_id": 7})), "class_id is 7, expected a number of the class-map"),
        (line(label({**BOX, "class_id": True})), "class_id is True"),
        (line(label({**BOX, "left": "x"})), "left is 'x', expected a number"),
        (line(label({**BOX, "top": None})), "top is None, expected a number"),
        (line(label({**BOX, "height": -3})), "width and height are 61 and -3, expected 0 or more"),
        (line(label({"class_id": 5, "left": 0.1, "top": 0.1, "width": 0.2, "height": 0.2})), "expected pixels"),
        (line(label(3)), "the entry is 3, expected an object"),
        (line(label(BOX, **{"class-map": ["dog"]})), "class_id is 5"),
        (line({**label(), "bounding-box": {"annotations": 7}}), "annotations is 7, expected a list"),
        (line({**label(), "bounding-box": 7}), "annotations is None, expected a list"),
        (line({**label(), "bounding-box": {"annotations": [], "image_size": [1]}}), "image_size is [1], expected one"),
        (line({**label(BOX), "bounding-box": {"annotations": [BOX], "image_size": [{"width": "x", "height": 2}]}}),
         "the stated image size is 'x' x 2"),
        (line({"tag": 1, "tag-metadata": {"type": "groundtruth/image-classification"}}),
         "the labels are 'groundtruth/image-classification', expected groundtruth/object-detection"),
        ("{broken\n", "the line is no JSON"),
        ("[1]\n", "source-ref is None, expected the address of an image"),
        (line(label(BOX), ref=7), "source-ref is 7, expected the address of an image"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_line_is_named_and_the_others_stand(text: str, words: str) -> None:
    parsed = read(line(label(BOX), ref="s3://bucket/p0.jpg"), "\n", text)
    good, bad = parsed.images
    assert good.is_usable
    assert words in problems(bad)[0]
    assert bad.entry == "output.manifest: line 3"


def test_a_file_without_a_manifest_line_is_refused_and_a_cut_one_is_truncated() -> None:
    for content in (b"", b"\n\n", b"{}\n[1]\n", b'{"a": 1}'):
        with pytest.raises(UnsupportedFormatError, match="source-ref are 0"):
            parse_ground_truth(content, "a.manifest")
    whole = (line(label(BOX)) * 2).encode()
    for end in (len(whole) - 3, len(whole) - 40):
        with pytest.raises(TruncatedFileError, match=r"a\.manifest: the end of the last line is missing"):
            parse_ground_truth(whole[:end], "a.manifest")


def test_manifests_are_told_from_other_json() -> None:
    def kind(text: str, name: str = "a.json") -> str:
        return recognize(name, text.encode(), text.encode(), text.encode())

    assert kind(line(label(BOX))) == kind(line() * 3, "a.jsonl") == "ground_truth"
    assert kind("\ufeff" + line()) == "ground_truth"
    assert kind('{"source-ref": "s3://b/p.jpg", "x": {\n' + line()) == "ground_truth"  # its first line is broken
    assert kind('{"image_id": "ab", "uri": "images/ab.png"}\n' * 2) == "other"


def test_writing_keeps_everything_in_whole_pixels() -> None:
    seen = {"status": "labeled", "annotator": "ann", "finished_at": "2026-03-02T08:00:00+00:00", "image_id": "ab" * 8}
    written = document(
        image("s3://b/p1.jpg", BOLT, replace(NUT, score=0.25), **seen),
        image("s3://b/p2.jpg", status="empty"),
        image("s3://b/p3.jpg"),
    )
    content = write_ground_truth(written, created_at="2026-01-01T00:00:00+00:00")
    parsed = parse_ground_truth(content, "a.manifest")
    assert parsed.class_names == written.class_names
    assert [one.status for one in parsed.images] == ["labeled", "empty", None]
    assert shapes(parsed.images[0]) == [("bolt", (10, 12, 41, 33), "box"), ("nut", (0, 0, 96, 72), "box")]
    for key, value in seen.items():
        assert getattr(parsed.images[0], key) == value
    assert parsed.images[1].finished_at == "2026-01-01T00:00:00+00:00"
    pre_drawn = parse_ground_truth(write_ground_truth(written, created_at=WHEN, human_annotated=False), "a.manifest")
    assert [(one.status, len(one.boxes), len(one.predicted)) for one in pre_drawn.images] == [
        (None, 0, 2), (None, 0, 0), (None, 0, 0)
    ]  # fmt: skip
    assert [box.score for box in pre_drawn.images[0].predicted] == [0.0, 0.25]


def test_a_manifest_becomes_a_campaign(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "photos").mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (500, 400), (number * 9, 80, 80)).save(root / "photos" / f"p{number}.jpg")
    lines = [
        line(label(BOX), ref="s3://bucket/photos/p0.jpg"),
        line(label(BOX), ref="s3://bucket/photos/p1.jpg"),
        line(label(), ref="s3://bucket/photos/p2.jpg"),
        line(label(BOX, **{"human-annotated": "no"}), ref="s3://bucket/photos/p3.jpg"),
        line(label({**BOX, "class_id": 9}), ref="s3://bucket/photos/p4.jpg"),
        line(label(BOX), ref="s3://bucket/photos/gone.jpg"),
        "{broken\n",
    ]
    (root / "output.manifest").write_text("".join(lines))
    found = detect(open_source(root)).only()
    assert found.describe().startswith("augmented manifest, as Amazon SageMaker Ground Truth exports it")
    for source in (
        DatasetSource(dataset=root),
        DatasetSource(annotations=root / "output.manifest", images=root / "photos"),
        DatasetSource("ground_truth", root / "output.manifest", root / "photos"),
    ):
        result = import_dataset(source, max_pixels=1_000_000)
        assert all(account.balances for account in result.accounts)
        parts = {part: number for part, number in result.accounts[1].parts.items() if number}
        assert parts == {"annotated": 2, "empty": 1, "unlabeled": 1, "not found": 1, "set aside": 2}
        assert set(result.class_names) == {"dog", "horse"}
        (broken,) = [entry for entry in result.report.rejected if entry.item.endswith("line 7")]
        assert "the line is no JSON" in broken.reason
