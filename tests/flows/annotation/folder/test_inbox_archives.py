"""Zip archives in an inbox are read as if they had been unpacked there; what is wrong with one has its name."""

import io
import json
import zipfile
from typing import Any

import pytest

from flows.annotation.providers import folder_inbox
from tasks.data.archives import ArchiveLimits
from tests.flows.annotation.folder.conftest import HEIGHT, WIDTH, Team

YOLO_LINE = "0 0.5 0.5 0.5 0.5\n"


def pack(contents: dict[str, str | bytes], **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def published(team: Team) -> None:
    """Publish the batch of every test."""
    team.provider.deliver(team.delivery)


def voc(image_id: str) -> str:
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth/></size>"
    box = "<bndbox><xmin>9</xmin><ymin>6</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
    return f"<annotation><filename>{image_id}.png</filename>{size}<object><name>cat</name>{box}</object></annotation>"


def test_an_export_of_cvat_with_pictures_and_side_files_is_read(team: Team) -> None:
    first, second, *_ = (task.image_id for task in team.tasks)
    contents: dict[str, str | bytes] = {f"Annotations/{image_id}.xml": voc(image_id) for image_id in (first, second)}
    contents |= {
        "ImageSets/Main/default.txt": f"{first}\n{second}\n",
        "labelmap.txt": "# label:color_rgb:parts:actions\n",
    }
    contents |= {f"JPEGImages/{first}.png": b"no matter", "__MACOSX/._x.xml": b"?", ".DS_Store": b"?"}
    team.write_to_inbox("batch-0003/task 7.zip", pack(contents))
    answers, problems = team.collect()
    assert (set(answers), problems) == ({first, second}, [])
    assert answers[first]["boxes"][0]["xyxy_px"] == [8.0, 5.0, 20.0, 30.0]
    assert str(answers[first]["url"]).endswith(f"batch-0003/task 7.zip/Annotations/{first}.xml")
    assert team.collect() == (answers, problems)  # nothing was written


def test_an_archive_says_the_same_as_its_files_and_has_class_numbers_of_its_own(team: Team) -> None:
    first, second, third, _ = (task.image_id for task in team.tasks)
    contents = {
        f"train/labels/{first}.txt": YOLO_LINE,
        "data.yaml": "names: [bird, cat]\n",
        "reviewed.csv": f"image,status\n{second},empty\n",
    }
    team.write_to_inbox("batch-0003/roboflow.zip", pack(contents))
    team.write_to_inbox(f"batch-0003/{third}.txt", YOLO_LINE)
    answers, problems = team.collect()
    assert problems == []
    assert {key: (raw["status"], [box["category"] for box in raw["boxes"]]) for key, raw in answers.items()} == {
        first: ("labeled", ["bird"]),
        second: ("empty", []),
        third: ("labeled", ["cat"]),  # by the published list
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no archive", "x.zip: the content is no zip archive, expected one"),
        (pack({"../a.json": "{}"}), "x.zip: a name is '../a.json', expected a path inside the archive"),
        (pack({"/etc/a.json": "{}"}), "x.zip: a name is '/etc/a.json', expected a path inside the archive"),
        (pack({f"{n}.txt": "" for n in range(20)}), "x.zip: the number of files is 20, expected at most 12"),
        (pack({"a.json": b"0" * 5000}), "x.zip: the file 'a.json' has 5000 bytes, expected at most 4000"),
        (pack({f"{n}.json": b"0" * 3000 for n in range(4)}), "x.zip: the unpacked size is 12000 bytes, expected"),
        (pack({"in.zip": pack({"a.json": "{}"})}), "x.zip/in.zip: the file is an archive inside an archive"),
    ],
)  # fmt: skip
def test_an_archive_that_cannot_be_used_is_a_problem_of_its_name(
    team: Team, monkeypatch: pytest.MonkeyPatch, content: bytes, problem: str
) -> None:
    limits = ArchiveLimits(max_files=12, max_file_bytes=4000, max_total_bytes=9000)
    monkeypatch.setattr(folder_inbox, "_LIMITS", limits)
    team.write_to_inbox("batch-0003/x.zip", content)
    team.write_to_inbox(f"batch-0003/{team.tasks[3].image_id}.txt", YOLO_LINE)
    answers, problems = team.collect()
    assert list(answers) == [team.tasks[3].image_id]  # the other files are read all the same
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_a_broken_file_of_an_archive_does_not_stop_the_others(team: Team) -> None:
    first = team.tasks[0].image_id
    content = pack({"a.json": json.dumps(team.coco([(1, "cat", [1, 1, 8, 8])])), f"{first}.txt": YOLO_LINE})
    start = content.index(b"a.json") + len("a.json")
    team.write_to_inbox("batch-0003/x.zip", content[:start] + b"\xff" * 20 + content[start + 20 :])
    answers, problems = team.collect()
    assert list(answers) == [first]
    assert len(problems) == 1
    assert problems[0].startswith("x.zip/a.json: the file 'a.json' is unreadable")


def test_an_archive_that_is_still_copied_is_read_at_the_next_run(team: Team) -> None:
    first = team.tasks[0].image_id
    whole = pack({f"{first}.txt": YOLO_LINE})
    for part in (b"", whole[:40], whole[:-10]):
        team.write_to_inbox("batch-0003/x.zip", part)
        assert team.collect() == ({}, [])
    team.write_to_inbox("batch-0003/x.zip", whole)
    assert list(team.collect()[0]) == [first]
    team.write_to_inbox("batch-0003/x.zip", whole[:-10], age_s=3 * 86_400)
    assert team.collect() == ({}, ["x.zip: the archive has no end, expected a whole zip"])
