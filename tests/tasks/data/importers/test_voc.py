"""Pascal VOC in: corners, names, and XML nobody vouches for."""

import os
from pathlib import Path

import pytest

from tasks.data.importers import ImportResult, read_coco, read_voc
from tasks.runtime.errors import UserError

OBJECT_XML = (
    "<object><name>{name}</name><difficult>1</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
    "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def voc_xml(filename: str, size: tuple[object, object], *objects: tuple[str, tuple[object, ...]]) -> str:
    drawn = "".join(OBJECT_XML.format(name=name, box=box) for name, box in objects)
    shown = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{shown}{drawn}</annotation>"


@pytest.fixture
def voc_folder(tiny_coco: Path) -> Path:
    """The tiny images with VOC sheets beside them, in ``Annotations``."""
    folder = tiny_coco / "Annotations"
    folder.mkdir()
    records = read_coco(tiny_coco / "annotations.json", tiny_coco / "images", max_pixels=100_000).records
    for record in records:
        boxes = [(box.category, box.xyxy_px) for box in record.boxes or ()]
        one_based = [(name, (x1 + 1, y1 + 1, x2, y2)) for name, (x1, y1, x2, y2) in boxes]
        size = (record.metadata.width_px, record.metadata.height_px)
        (folder / record.file_name).with_suffix(".xml").write_text(voc_xml(record.file_name, size, *one_based))
    return tiny_coco


def read(voc_folder: Path) -> ImportResult:
    return read_voc(voc_folder / "Annotations", voc_folder / "images", max_pixels=100_000)


def rejection_reasons(result: ImportResult) -> dict[str, str]:
    return {entry.item: entry.reason for entry in result.report.rejected}


def image_size(voc_folder: Path, name: str) -> tuple[int, int]:
    facts = next(record.metadata for record in read(voc_folder).records if record.file_name == name)
    return facts.width_px, facts.height_px


def test_one_based_inclusive_corners_give_the_boxes_of_coco(voc_folder: Path) -> None:
    coco = read_coco(voc_folder / "annotations.json", voc_folder / "images", max_pixels=100_000)
    assert read(voc_folder).records == coco.records
    assert read(voc_folder).report.rejected == []


def test_zero_based_file_lies_a_pixel_outside_and_is_clipped(voc_folder: Path) -> None:
    text = voc_xml("00.png", image_size(voc_folder, "00.png"), ("disc", (0, 0, 20, 20)))
    (voc_folder / "Annotations" / "00.xml").write_text(text)
    result = read(voc_folder)
    assert result.records[0].boxes is not None
    assert result.records[0].boxes[0].xyxy_px == (0, 0, 20, 20)
    assert result.report.clipped_boxes == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "malformed"),
        ("<annotation>", "malformed"),
        ("<other/>", "root is <other>"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "malformed"),
        (voc_xml("00.png", ("", ""), ("disc", (5, 5, "x", 9))), "<xmax>"),
        (voc_xml("00.png", ("", ""), ("disc", ("nan", 5, 9, 9))), "finite"),
        (voc_xml("00.png", ("", ""), ("disc", (5, 5, 5, 9))), "no area"),
        (voc_xml("00.png", ("", ""), ("disc", (5, 5, 4, 4))), "no area"),
        (voc_xml("00.png", ("", ""), ("disc", (5, 5, 500, 9))), "inside the image"),
        (voc_xml("00.png", ("", ""), ("", (5, 5, 9, 9))), "class name"),
        (voc_xml("00.png", (10, 10)), "size is 10 x 10"),
        (voc_xml("00.png", ("wide", 10)), "size is wide x 10"),
        ("<annotation><object><name>disc</name></object></annotation>", "<xmin>"),
    ],
)
def test_bad_sheet_is_named_and_the_rest_comes_in(voc_folder: Path, text: str, reason: str) -> None:
    (voc_folder / "Annotations" / "00.xml").write_text(text)
    result = read(voc_folder)
    [entry] = result.report.rejected
    assert entry.item in ("00.xml", "00.png")
    assert reason in entry.reason
    assert "00.png" in result.report.rejected_images  # it must not come in as never annotated
    assert len(result.records) == 11


ENTITY_BOMB = """<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa">{entities}]>
<annotation><filename>&z;</filename></annotation>""".format(
    entities="".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghiz", strict=True))
)
EXTERNAL_ENTITY = """<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/hostname">]>
<annotation><filename>&x;</filename></annotation>"""


@pytest.mark.parametrize(
    "text", [ENTITY_BOMB, EXTERNAL_ENTITY, '<!DOCTYPE annotation SYSTEM "http://localhost/x.dtd"><annotation/>']
)
def test_entities_are_refused_before_they_expand(voc_folder: Path, text: str) -> None:
    (voc_folder / "Annotations" / "00.xml").write_text(text)
    assert "DOCTYPE" in rejection_reasons(read(voc_folder))["00.xml"]


def test_sheet_that_is_a_folder_or_endless_is_set_aside(voc_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (voc_folder / "Annotations" / "extra.xml").mkdir()
    assert "malformed" in rejection_reasons(read(voc_folder))["extra.xml"]
    monkeypatch.setattr("tasks.data.importers.voc._MAX_XML_BYTES", 50)
    with pytest.raises(UserError, match="bytes long"):
        read(voc_folder)


def test_sheets_name_counts_before_a_left_over_filename(voc_folder: Path) -> None:
    path = voc_folder / "Annotations" / "00.xml"
    path.write_text(path.read_text().replace("00.png", "IMG_4711.JPG"))
    result = read(voc_folder)
    assert len(result.records) == 12
    assert result.report.notes[0].item == "00.xml"


def test_filename_counts_where_no_image_has_the_sheets_name(voc_folder: Path) -> None:
    os.replace(voc_folder / "Annotations" / "00.xml", voc_folder / "Annotations" / "renamed.xml")
    assert len(read(voc_folder).records) == 12


def test_filename_cannot_leave_the_images_folder(voc_folder: Path) -> None:
    (voc_folder / "Annotations" / "evil.xml").write_text(voc_xml("../images/00.png", ("", "")))
    assert "inside the images folder" in rejection_reasons(read(voc_folder))["../images/00.png"]


def test_sheet_without_image_is_named(voc_folder: Path) -> None:
    (voc_folder / "Annotations" / "ghost.xml").write_text(voc_xml("ghost.jpg", (64, 64)))
    assert "missing" in rejection_reasons(read(voc_folder))["ghost.jpg"]


def test_two_sheets_of_one_image_cancel_each_other(voc_folder: Path) -> None:
    (voc_folder / "Annotations" / "again.xml").write_text((voc_folder / "Annotations" / "00.xml").read_text())
    result = read(voc_folder)
    assert "several XML files" in rejection_reasons(result)["00.png"]
    assert len(result.records) == 11


def test_two_images_of_one_name_are_not_guessed(voc_folder: Path) -> None:
    (voc_folder / "images" / "00.jpg").write_bytes((voc_folder / "images" / "01.png").read_bytes())
    path = voc_folder / "Annotations" / "00.xml"
    assert read(voc_folder).report.rejected == []  # <filename> tells them apart
    path.write_text(path.read_text().replace("00.png", "old.png"))
    assert "expected one" in rejection_reasons(read(voc_folder))["00.xml"]


def test_unknown_size_is_taken_from_the_file(voc_folder: Path) -> None:
    for number, size in enumerate([(0, 0), ("", "")]):
        (voc_folder / "Annotations" / f"{number:02d}.xml").write_text(voc_xml("x", size, ("disc", (2, 2, 9, 9))))
    assert len(read(voc_folder).records) == 12


def test_useless_folder_is_an_error(voc_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="XML files in the folder are 0"):
        read_voc(tmp_path / "empty", voc_folder / "images", max_pixels=100_000)
    with pytest.raises(UserError, match="not a folder"):
        read_voc(voc_folder / "annotations.json", voc_folder / "images", max_pixels=100_000)
    for path in (voc_folder / "Annotations").iterdir():
        path.write_text("<")
    with pytest.raises(UserError, match="usable images are 0 of 12"):
        read(voc_folder)
