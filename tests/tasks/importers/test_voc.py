"""Pascal VOC in: corners, names, and XML nobody vouches for."""

import os
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.importers import Imported, read_coco, read_voc

OBJECT = (
    "<object><name>{name}</name><difficult>1</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
    "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def sheet(filename: str, size: tuple[object, object], *objects: tuple[str, tuple[object, ...]]) -> str:
    drawn = "".join(OBJECT.format(name=name, box=box) for name, box in objects)
    shown = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{shown}{drawn}</annotation>"


@pytest.fixture
def voc(tiny_coco: Path) -> Path:
    """The tiny images with VOC sheets beside them, in ``Annotations``."""
    folder = tiny_coco / "Annotations"
    folder.mkdir()
    records = read_coco(tiny_coco / "annotations.json", tiny_coco / "images", max_pixels=100_000).records
    for record in records:
        boxes = [(box.category, box.xyxy_px) for box in record.boxes or ()]
        one_based = [(name, (x1 + 1, y1 + 1, x2, y2)) for name, (x1, y1, x2, y2) in boxes]
        size = (record.facts.width_px, record.facts.height_px)
        (folder / record.file_name).with_suffix(".xml").write_text(sheet(record.file_name, size, *one_based))
    return tiny_coco


def read(voc: Path) -> Imported:
    return read_voc(voc / "Annotations", voc / "images", max_pixels=100_000)


def reasons(result: Imported) -> dict[str, str]:
    return {entry.where: entry.reason for entry in result.findings.set_aside}


def size_of(voc: Path, name: str) -> tuple[int, int]:
    facts = next(record.facts for record in read(voc).records if record.file_name == name)
    return facts.width_px, facts.height_px


def test_one_based_inclusive_corners_give_the_boxes_of_coco(voc: Path) -> None:
    coco = read_coco(voc / "annotations.json", voc / "images", max_pixels=100_000)
    assert read(voc).records == coco.records
    assert read(voc).findings.set_aside == []


def test_zero_based_file_lies_a_pixel_outside_and_is_clipped(voc: Path) -> None:
    text = sheet("00.png", size_of(voc, "00.png"), ("disc", (0, 0, 20, 20)))
    (voc / "Annotations" / "00.xml").write_text(text)
    result = read(voc)
    assert result.records[0].boxes is not None
    assert result.records[0].boxes[0].xyxy_px == (0, 0, 20, 20)
    assert result.findings.clipped_boxes == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "malformed"),
        ("<annotation>", "malformed"),
        ("<other/>", "root is <other>"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "malformed"),
        (sheet("00.png", ("", ""), ("disc", (5, 5, "x", 9))), "<xmax>"),
        (sheet("00.png", ("", ""), ("disc", ("nan", 5, 9, 9))), "finite"),
        (sheet("00.png", ("", ""), ("disc", (5, 5, 5, 9))), "no area"),
        (sheet("00.png", ("", ""), ("disc", (5, 5, 4, 4))), "no area"),
        (sheet("00.png", ("", ""), ("disc", (5, 5, 500, 9))), "inside the image"),
        (sheet("00.png", ("", ""), ("", (5, 5, 9, 9))), "class name"),
        (sheet("00.png", (10, 10)), "size is 10 x 10"),
        (sheet("00.png", ("wide", 10)), "size is wide x 10"),
        ("<annotation><object><name>disc</name></object></annotation>", "<xmin>"),
    ],
)
def test_bad_sheet_is_named_and_the_rest_comes_in(voc: Path, text: str, reason: str) -> None:
    (voc / "Annotations" / "00.xml").write_text(text)
    result = read(voc)
    [entry] = result.findings.set_aside
    assert entry.where in ("00.xml", "00.png")
    assert reason in entry.reason
    assert "00.png" in result.findings.refused  # it must not come in as never annotated
    assert len(result.records) == 11


BOMB = """<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa">{entities}]>
<annotation><filename>&z;</filename></annotation>""".format(
    entities="".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghiz", strict=True))
)
STEAL = """<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/hostname">]>
<annotation><filename>&x;</filename></annotation>"""


@pytest.mark.parametrize("text", [BOMB, STEAL, '<!DOCTYPE annotation SYSTEM "http://localhost/x.dtd"><annotation/>'])
def test_entities_are_refused_before_they_expand(voc: Path, text: str) -> None:
    (voc / "Annotations" / "00.xml").write_text(text)
    assert "DOCTYPE" in reasons(read(voc))["00.xml"]


def test_sheet_that_is_a_folder_or_endless_is_set_aside(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (voc / "Annotations" / "extra.xml").mkdir()
    assert "malformed" in reasons(read(voc))["extra.xml"]
    monkeypatch.setattr("tasks.importers.voc._MAX_XML_BYTES", 50)
    with pytest.raises(UserError, match="bytes long"):
        read(voc)


def test_sheets_name_counts_before_a_left_over_filename(voc: Path) -> None:
    path = voc / "Annotations" / "00.xml"
    path.write_text(path.read_text().replace("00.png", "IMG_4711.JPG"))
    result = read(voc)
    assert len(result.records) == 12
    assert result.findings.notes[0].where == "00.xml"


def test_filename_counts_where_no_image_has_the_sheets_name(voc: Path) -> None:
    os.replace(voc / "Annotations" / "00.xml", voc / "Annotations" / "renamed.xml")
    assert len(read(voc).records) == 12


def test_filename_cannot_leave_the_images_folder(voc: Path) -> None:
    (voc / "Annotations" / "evil.xml").write_text(sheet("../images/00.png", ("", "")))
    assert "inside the images folder" in reasons(read(voc))["../images/00.png"]


def test_sheet_without_image_is_named(voc: Path) -> None:
    (voc / "Annotations" / "ghost.xml").write_text(sheet("ghost.jpg", (64, 64)))
    assert "missing" in reasons(read(voc))["ghost.jpg"]


def test_two_sheets_of_one_image_cancel_each_other(voc: Path) -> None:
    (voc / "Annotations" / "again.xml").write_text((voc / "Annotations" / "00.xml").read_text())
    result = read(voc)
    assert "several XML files" in reasons(result)["00.png"]
    assert len(result.records) == 11


def test_two_images_of_one_name_are_not_guessed(voc: Path) -> None:
    (voc / "images" / "00.jpg").write_bytes((voc / "images" / "01.png").read_bytes())
    path = voc / "Annotations" / "00.xml"
    assert read(voc).findings.set_aside == []  # <filename> tells them apart
    path.write_text(path.read_text().replace("00.png", "old.png"))
    assert "expected one" in reasons(read(voc))["00.xml"]


def test_unknown_size_is_taken_from_the_file(voc: Path) -> None:
    for number, size in enumerate([(0, 0), ("", "")]):
        (voc / "Annotations" / f"{number:02d}.xml").write_text(sheet("x", size, ("disc", (2, 2, 9, 9))))
    assert len(read(voc).records) == 12


def test_useless_folder_is_an_error(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="XML files in the folder are 0"):
        read_voc(tmp_path / "empty", voc / "images", max_pixels=100_000)
    with pytest.raises(UserError, match="not a folder"):
        read_voc(voc / "annotations.json", voc / "images", max_pixels=100_000)
    for path in (voc / "Annotations").iterdir():
        path.write_text("<")
    with pytest.raises(UserError, match="usable images are 0 of 12"):
        read(voc)
