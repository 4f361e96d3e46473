"""Class indices that stay true to their names."""

from pathlib import Path

import pyarrow as pa
import pytest

from tasks.data.annotations import AnnotatedImage, read_annotated, write_annotated
from tasks.data.schemas import ANNOTATED, Box
from tasks.runtime.errors import UserError
from tasks.storage import files

CROWD = (Box(category="dog", xyxy_px=(0, 0, 40, 30)),)
IMAGES = [
    AnnotatedImage("c", "c.png", 40, 30, (Box(category="cat", xyxy_px=(1, 2, 3.5, 4)),), 0, CROWD),
    AnnotatedImage("b", "data/images/b.png", 40, 30, (Box(category="cat", xyxy_px=(1, 2, 3.5, 4)),), -1),
    AnnotatedImage("a", "data/images/a.png", 40, 30, (), 2),
]


def test_round_trip_sorts_by_id_and_keeps_the_contract(tmp_path: Path) -> None:
    write_annotated(tmp_path / "x.parquet", IMAGES, ["dog", "cat"])
    assert read_annotated(tmp_path / "x.parquet", ["dog", "cat"]) == sorted(IMAGES, key=lambda i: i.image_id)
    table = files.read_table(tmp_path / "x.parquet", ANNOTATED)
    assert table["class_ids"].to_pylist() == [[], [1], [1, 0]]
    assert table["is_crowd"].to_pylist() == [[], [False], [False, True]]


def test_reordered_classes_keep_their_boxes(tmp_path: Path) -> None:
    write_annotated(tmp_path / "x.parquet", IMAGES, ["dog", "cat"])
    [_, image, other] = read_annotated(tmp_path / "x.parquet", ["cat", "bird", "dog"])
    assert other.crowd_regions == CROWD
    assert image.boxes[0].category == "cat"


def test_class_that_was_taken_out_is_an_error_with_its_name(tmp_path: Path) -> None:
    write_annotated(tmp_path / "x.parquet", IMAGES, ["dog", "cat"])
    with pytest.raises(UserError, match=r"x\.parquet: .*'cat'.*Add the class"):
        read_annotated(tmp_path / "x.parquet", ["dog"])


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"class_ids": [5]}, "'index 5'"),
        ({"class_ids": [-1]}, "'index -1'"),
        ({"boxes_xyxy": [1.0]}, "4 each"),
        ({"is_crowd": [True, False]}, "2 crowd marks for 1 boxes"),
    ],
)
def test_table_of_other_origin_is_checked(tmp_path: Path, columns: dict[str, list[float]], problem: str) -> None:
    row = {"image_id": "a", "uri": "u", "width_px": 9, "height_px": 9, "batch": -1}
    row |= {"boxes_xyxy": [1.0, 2.0, 3.0, 4.0], "class_ids": [0], **columns}
    table = pa.Table.from_pylist([row], schema=ANNOTATED)
    files.write_table(tmp_path / "x.parquet", table)
    with pytest.raises(UserError, match=problem):
        read_annotated(tmp_path / "x.parquet", ["dog", "cat"])
