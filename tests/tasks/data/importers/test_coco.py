"""COCO in: the good rest always comes through, and every bad entry has a name."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.data.importers import ImportResult, read_coco
from tasks.runtime.errors import UserError

Document = dict[str, Any]
Edit = Callable[[Document], None]


def read(folder: Path, edit: Edit = lambda _: None) -> ImportResult:
    path = folder / "annotations.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return read_coco(path, folder / "images", max_pixels=100_000)


def rejection_reasons(result: ImportResult) -> dict[str, str]:
    return {entry.item: entry.reason for entry in result.report.rejected}


def test_good_file_comes_in_whole(tiny_coco: Path) -> None:
    result = read(tiny_coco)
    assert [record.file_name for record in result.records] == [f"{n:02d}.png" for n in range(12)]
    assert not result.report.rejected
    assert result.records[11].boxes == ()  # listed without boxes: somebody looked
    document = json.loads((tiny_coco / "annotations.json").read_text())
    x, y, width, height = document["annotations"][0]["bbox"]
    assert result.records[0].boxes is not None
    assert result.records[0].boxes[0].xyxy_px == (x, y, x + width, y + height)


def set_key(kind: str, position: int, **values: Any) -> Edit:
    def edit(document: Document) -> None:
        document[kind][position] |= values

    return edit


def drop_key(kind: str, position: int, key: str) -> Edit:
    def edit(document: Document) -> None:
        del document[kind][position][key]

    return edit


def add_entry(kind: str, entry: Any) -> Edit:
    return lambda document: document[kind].append(entry)


def copy_entry(kind: str, position: int, **values: Any) -> Edit:
    return lambda document: document[kind].append(document[kind][position] | values)


@pytest.mark.parametrize(
    ("edit", "where", "reason"),
    [
        (set_key("images", 0, file_name="gone.png"), "gone.png", "missing"),
        (
            set_key("images", 0, file_name="../annotations.json"),
            "../annotations.json",
            "inside the images folder",
        ),
        (set_key("images", 0, file_name="/etc/passwd"), "/etc/passwd", "inside the images folder"),
        (set_key("images", 0, file_name=""), "", "inside the images folder"),
        (set_key("images", 0, file_name="a\0b"), "a\0b", "inside the images folder"),
        (set_key("images", 0, file_name="x" * 5000), "x" * 5000, "unreadable"),
        (set_key("images", 0, width=999), "00.png", "size is 999 x"),
        (set_key("images", 0, width="wide"), "annotations.json: images[0]", "width is"),
        (drop_key("images", 0, "file_name"), "annotations.json: images[0]", "file_name"),
        (drop_key("images", 0, "id"), "annotations.json: images[0]", "id"),
        (add_entry("images", "nonsense"), "annotations.json: images[12]", "the entry is"),
        (copy_entry("images", 0, file_name="other.png"), "00.png", "several images"),
        (copy_entry("images", 0, id=77), "00.png", "several image ids"),
        (set_key("annotations", 0, category_id=9), "00.png", "category_id is 9"),
        (set_key("annotations", 0, bbox=[10, 10, 0, 5]), "00.png", "no area"),
        (set_key("annotations", 0, bbox=[10, 10, 5, -5]), "00.png", "no area"),
        (set_key("annotations", 0, bbox=[-30, 0, 40, 10]), "00.png", "inside the image"),
        (set_key("annotations", 0, bbox=[0, 0, 500, 10]), "00.png", "inside the image"),
        (set_key("annotations", 0, bbox=[0, 0, 5]), "00.png", "bbox"),
        (set_key("annotations", 0, bbox=None), "00.png", "bbox"),
        (set_key("annotations", 0, bbox=[float("nan"), 0, 5, 5]), "00.png", "finite"),
        (set_key("annotations", 0, bbox=[10**400, 0, 5, 5]), "00.png", "bbox"),
        (drop_key("annotations", 0, "category_id"), "00.png", "category_id"),
        (set_key("annotations", 0, image_id=999), "annotations.json: annotations[0]", "image_id is 999"),
        (set_key("annotations", 0, image_id=[]), "annotations.json: annotations[0]", "image_id"),
        (add_entry("annotations", 3), "annotations.json: annotations[16]", "the entry is 3"),
        (copy_entry("annotations", 0, bbox=[1, 1, 9, 9]), "00.png", "stands for several boxes"),
        (
            add_entry("categories", {"id": 0, "name": "other"}),
            "annotations.json: category id 0",
            "several names",
        ),
        (add_entry("categories", {"id": 5, "name": "a\nb"}), "annotations.json: category id 5", "class name"),
        (add_entry("categories", {"id": 5}), "annotations.json: categories[2]", "name"),
    ],
)
def test_bad_entry_is_named_and_the_rest_comes_in(tiny_coco: Path, edit: Edit, where: str, reason: str) -> None:
    result = read(tiny_coco, edit)
    assert reason in rejection_reasons(result)[where]
    names = {record.file_name for record in result.records}
    assert names >= {"11.png"}  # the one without boxes is hit by none of these
    assert where not in names
    assert len(result.report.rejected) == len({entry.item for entry in result.report.rejected})


def test_other_images_are_not_touched_by_a_bad_one(tiny_coco: Path) -> None:
    result = read(tiny_coco, set_key("annotations", 0, bbox=[0, 0, 0, 0]))
    assert {r.file_name for r in result.records} == {f"{n:02d}.png" for n in range(1, 12)}
    assert result.report.rejected_images == {"00.png"}


def test_off_by_one_box_is_clipped_and_counted(tiny_coco: Path) -> None:
    width = json.loads((tiny_coco / "annotations.json").read_text())["images"][0]["width"]
    result = read(tiny_coco, set_key("annotations", 0, bbox=[-1, 0, width + 2, 20]))
    assert result.records[0].boxes is not None
    assert result.records[0].boxes[0].xyxy_px == (0, 0, width, 20)
    assert result.report.clipped_boxes == 1
    assert result.report.notes[0].item == "00.png"


def test_truncated_image_is_set_aside(tiny_coco: Path) -> None:
    path = tiny_coco / "images" / "03.png"
    path.write_bytes(path.read_bytes()[:200])
    assert "unreadable" in rejection_reasons(read(tiny_coco))["03.png"]


def test_link_out_of_the_images_folder_is_refused(tiny_coco: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    os.replace(tiny_coco / "images" / "03.png", outside)
    (tiny_coco / "images" / "03.png").symlink_to(outside)
    assert "link out of" in rejection_reasons(read(tiny_coco))["03.png"]


def test_images_in_subfolders_keep_their_names(tiny_coco: Path) -> None:
    (tiny_coco / "images" / "sub").mkdir()
    os.replace(tiny_coco / "images" / "03.png", tiny_coco / "images" / "sub" / "03.png")
    result = read(tiny_coco, set_key("images", 3, file_name="sub/03.png"))
    assert "sub/03.png" in {record.file_name for record in result.records}


def test_what_other_tools_write_is_tolerated(tiny_coco: Path) -> None:
    def edit(document: Document) -> None:
        document["images"][0] |= {"width": None, "height": None, "license": 3}
        for annotation in document["annotations"]:
            del annotation["id"]
            annotation["segmentation"] = [[1, 2, 3]]
        document["categories"].append({"id": 7, "name": "square"})
        document["annotations"][0]["category_id"] = 7
        document["annotations"].append(document["annotations"][0] | {"iscrowd": 1})

    result = read(tiny_coco, edit)
    assert len(result.records) == 12
    assert not result.report.rejected
    assert result.records[0].boxes is not None
    assert [box.category for box in result.records[0].boxes] == ["square"]  # the crowd is left out
    assert "crowd" in result.report.notes[0].reason


def test_exact_copies_of_entries_are_kept_once(tiny_coco: Path) -> None:
    plain = read(tiny_coco)

    def edit(document: Document) -> None:
        document["images"].append(document["images"][0])
        document["annotations"].append(document["annotations"][0])

    doubled = read(tiny_coco, edit)
    assert doubled.records == plain.records
    assert len(doubled.report.notes) == 2


def test_joined_files_with_the_same_annotation_ids_keep_their_boxes(tiny_coco: Path) -> None:
    plain = read(tiny_coco)
    joined = read(tiny_coco, set_key("annotations", 1, id=0))  # of image 1, with the id of image 0's
    assert joined.records == plain.records
    assert joined.report.notes[0].item == "01.png"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "list"),
        ("{}", "'images' is missing"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' is missing"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "'images' is empty"),
        ('{"images": [{}], "annotations": [], "categories": []}', "'categories' is empty"),
        ('{"images": [{}], "annotations": [], "categories": [{}]}', "usable images are 0"),
        ("[" * 100_000, "unreadable"),
        ("9" * 5_000, "unreadable"),
        ("\udcff", "not JSON"),
    ],
)
def test_useless_file_is_an_error_with_a_name(tiny_coco: Path, text: str, problem: str) -> None:
    path = tiny_coco / "annotations.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=problem) as caught:
        read_coco(path, tiny_coco / "images", max_pixels=100_000)
    assert str(path) in str(caught.value)


def test_missing_files_are_errors(tiny_coco: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        read_coco(tiny_coco / "none.json", tiny_coco / "images", max_pixels=100_000)
    with pytest.raises(UserError, match="images folder"):
        read_coco(tiny_coco / "annotations.json", tiny_coco / "none", max_pixels=100_000)
    with pytest.raises(UserError, match="unreadable"):
        read_coco(tiny_coco, tiny_coco / "images", max_pixels=100_000)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["images", "annotations", "categories"]),
    key=st.sampled_from(["id", "file_name", "width", "image_id", "category_id", "bbox", "iscrowd", "name"]),
    value=values,
)
def test_any_value_in_any_field_ends_in_records_or_a_message(tiny_coco: Path, kind: str, key: str, value: Any) -> None:
    document = json.loads((tiny_coco / "annotations.json").read_text())
    document[kind][0] |= {key: value}
    edited = tiny_coco / "edited.json"
    edited.write_text(json.dumps(document))
    try:
        result = read_coco(edited, tiny_coco / "images", max_pixels=100_000)
    except UserError:
        return
    for record in result.records:
        for box in record.boxes or ():
            x1, y1, x2, y2 = box.xyxy_px
            assert 0 <= x1 < x2 <= record.metadata.width_px
            assert 0 <= y1 < y2 <= record.metadata.height_px
