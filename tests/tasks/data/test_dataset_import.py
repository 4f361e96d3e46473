"""Pool and validation put together: every file once, nothing in both."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from tasks.data.dataset_import import ImportedDataset, import_dataset
from tasks.data.dataset_source import DatasetSource
from tasks.data.import_report import Reason
from tasks.runtime.errors import UserError
from tasks.storage import files


def file_names(records: object) -> list[str]:
    assert isinstance(records, tuple)
    return sorted(record.file_name for record in records)


def import_with_val(source: DatasetSource, val: Path, val_images: Path | None = None) -> ImportedDataset:
    return import_dataset(dataclasses.replace(source, val=val, val_images=val_images), max_pixels=100_000)


def write_val_split(source: DatasetSource, numbers: set[int]) -> Path:
    """Moves the entries of some images into a ``val.json`` of their own."""
    document = json.loads(source.annotations.read_text())
    val = source.annotations.with_name("val.json")
    for path, keep in ((val, True), (source.annotations, False)):
        part = dict(document)
        part["images"] = [image for image in document["images"] if (image["id"] in numbers) is keep]
        part["annotations"] = [a for a in document["annotations"] if (a["image_id"] in numbers) is keep]
        files.write_json(path, part)
    return val


def test_without_a_validation_set_all_is_pool(tiny_source: DatasetSource) -> None:
    gathered = import_dataset(tiny_source, max_pixels=100_000)
    assert gathered.val is None
    assert len(gathered.pool) == 12
    assert [r.metadata.sha256 for r in gathered.pool] == sorted(r.metadata.sha256 for r in gathered.pool)


def test_images_without_annotation_join_the_pool_and_broken_ones_are_named(tiny_source: DatasetSource) -> None:
    write_val_split(tiny_source, {0, 1})  # 00 and 01 are annotated nowhere that is read
    (tiny_source.images / "broken.jpg").write_bytes(b"no picture")
    (tiny_source.images / ".hidden.png").write_bytes(b"no picture")
    (tiny_source.images / "notes.txt").write_text("no picture")
    gathered = import_dataset(tiny_source, max_pixels=100_000)
    assert file_names(tuple(r for r in gathered.pool if r.boxes is None)) == ["00.png", "01.png"]
    assert [entry.item for entry in gathered.report.rejected] == ["broken.jpg"]


def test_set_aside_image_does_not_come_back_as_unannotated(tiny_source: DatasetSource) -> None:
    document = json.loads(tiny_source.annotations.read_text())
    document["annotations"][0]["bbox"] = [0, 0, 0, 0]
    files.write_json(tiny_source.annotations, document)
    gathered = import_dataset(tiny_source, max_pixels=100_000)
    assert "00.png" not in file_names(gathered.pool)


def test_a_copy_of_a_set_aside_image_is_set_aside_unless_one_of_them_is_labeled(tiny_source: DatasetSource) -> None:
    document = json.loads(tiny_source.annotations.read_text())
    for image in (0, 3):  # 03 is labeled well under a second name
        broken = {"id": 900 + image, "image_id": image, "category_id": 0, "bbox": [0, 0, 0, 0]}
        document["annotations"].append(broken)
    for name, original in (("never listed.png", "00"), ("listed.png", "00"), ("labeled.png", "03"), ("bare.png", "03")):
        shutil.copy(tiny_source.images / f"{original}.png", tiny_source.images / name)
    first = document["images"][0]
    size = {side: first[side] for side in ("width", "height")}
    document["images"].append({"id": 50, "file_name": "listed.png", **size})
    labeled = {"id": 950, "image_id": 51, "category_id": 0, "bbox": [2, 2, 20, 20]}
    third = document["images"][3]
    document["images"].append(
        {"id": 51, "file_name": "labeled.png", "width": third["width"], "height": third["height"]}
    )
    document["annotations"].append(labeled)
    files.write_json(tiny_source.annotations, document)
    gathered = import_dataset(tiny_source, max_pixels=100_000)
    assert all(account.balances for account in gathered.accounts), [a.describe() for a in gathered.accounts]
    aside = {entry.item: entry for entry in gathered.report.rejected}
    assert set(aside) == {"00.png", "03.png", "never listed.png", "listed.png"}
    assert {aside[name].code for name in ("never listed.png", "listed.png")} == {Reason.COPY}
    assert aside["listed.png"].reason == "same bytes as 00.png, which is set aside"
    assert len({aside[name].image_id for name in ("00.png", "never listed.png", "listed.png")}) == 1
    assert "labeled.png" in file_names(tuple(r for r in gathered.pool if r.boxes))
    assert {r.file_name for r in gathered.pool if r.boxes is None} == set()
    assert gathered.duplicates_collapsed == 1  # bare.png, whose other copy is labeled
    assert gathered.accounts[1].parts["set aside"] == 3


@pytest.mark.parametrize("is_certain_in_val", [True, False])
def test_a_name_that_fits_several_images_takes_none_that_the_other_split_means_for_sure(
    tiny_source: DatasetSource, is_certain_in_val: bool
) -> None:
    (tiny_source.images / "day").mkdir()
    shutil.copy(tiny_source.images / "11.png", tiny_source.images / "day" / "00.png")
    with (tiny_source.images / "day" / "00.png").open("ab") as stream:
        stream.write(b"more")  # no copy of another image
    document = json.loads(tiny_source.annotations.read_text())
    certain, ambiguous = ({0}, {1}) if is_certain_in_val else ({1}, {0})
    val = write_val_split(tiny_source, certain if is_certain_in_val else ambiguous)
    for path in (val, tiny_source.annotations):
        split = json.loads(path.read_text())
        for image in split["images"]:
            if image["id"] in ambiguous:
                image["file_name"] = "up/00.png"  # 00.png or day/00.png
            elif image["id"] in certain:
                first = next(entry for entry in document["images"] if entry["id"] == 0)
                image |= {"file_name": "00.png", "width": first["width"], "height": first["height"]}
        if path == val and not is_certain_in_val:  # a validation set needs an image of its own
            split["images"].append(document["images"][2])
            split["annotations"] += [a for a in document["annotations"] if a["image_id"] == 2]
        files.write_json(path, split)
    gathered = import_with_val(tiny_source, val)
    assert all(account.balances for account in gathered.accounts), [a.describe() for a in gathered.accounts]
    by_code = {entry.item: entry.code for entry in gathered.report.rejected}
    assert by_code["up/00.png"] == by_code["day/00.png"] == Reason.NAME_AMBIGUOUS
    assert "00.png" not in by_code or by_code["00.png"] != Reason.NAME_AMBIGUOUS


def test_own_coco_validation_file(tiny_source: DatasetSource) -> None:
    gathered = import_with_val(tiny_source, write_val_split(tiny_source, {2, 3, 11}))
    assert file_names(gathered.val) == ["02.png", "03.png", "11.png"]
    assert file_names(gathered.pool) == [f"{n:02d}.png" for n in (0, 1, 4, 5, 6, 7, 8, 9, 10)]
    assert not gathered.report.notes


def test_validation_file_that_repeats_images_of_the_annotations(tiny_source: DatasetSource) -> None:
    whole = tiny_source.annotations.read_bytes()
    val = write_val_split(tiny_source, {2, 3})
    tiny_source.annotations.write_bytes(whole)
    gathered = import_with_val(tiny_source, val)
    assert file_names(gathered.val) == ["02.png", "03.png"]
    assert len(gathered.pool) == 10


def test_validation_images_in_a_folder_of_their_own_may_share_names(tiny_source: DatasetSource) -> None:
    val = write_val_split(tiny_source, {2, 3})
    folder = tiny_source.images.with_name("val_images")
    folder.mkdir()
    document = json.loads(val.read_text())
    for new, image in enumerate(document["images"]):
        shutil.move(tiny_source.images / image["file_name"], folder / f"{new:02d}.png")
        image["file_name"] = f"{new:02d}.png"  # 00.png and 01.png also name images of the pool
    files.write_json(val, document)
    gathered = import_with_val(tiny_source, val, folder)
    assert file_names(gathered.val) == ["00.png", "01.png"]
    assert file_names(gathered.pool) == [f"{n:02d}.png" for n in (0, 1, 4, 5, 6, 7, 8, 9, 10, 11)]


def test_list_of_validation_images(tiny_source: DatasetSource) -> None:
    listed = tiny_source.annotations.with_name("val.txt")
    listed.write_text("02\n03.png\n\nnowhere\n")
    gathered = import_with_val(tiny_source, listed)
    assert file_names(gathered.val) == ["02.png", "03.png"]
    assert len(gathered.pool) == 10
    [entry] = gathered.report.rejected
    assert entry.item == "val.txt"
    assert "'nowhere' is missing" in entry.reason


def test_listed_image_that_was_set_aside_is_named_once(tiny_source: DatasetSource) -> None:
    (tiny_source.images / "02.png").write_bytes(b"no picture")
    listed = tiny_source.annotations.with_name("val.txt")
    listed.write_text("02\n03\n")
    gathered = import_with_val(tiny_source, listed)
    assert file_names(gathered.val) == ["03.png"]
    assert [entry.item for entry in gathered.report.rejected] == ["02.png"]


@pytest.mark.parametrize("content", [b"", b"nowhere\n", b"\xff\xfe\x00"])
def test_useless_list_is_an_error(tiny_source: DatasetSource, content: bytes) -> None:
    listed = tiny_source.annotations.with_name("val.txt")
    listed.write_bytes(content)
    with pytest.raises(UserError, match=r"val\.txt: .*validation"):
        import_with_val(tiny_source, listed)
    with pytest.raises(UserError, match="unreadable"):
        import_with_val(tiny_source, listed.with_name("none.txt"))


def test_exact_duplicates_collapse_to_the_annotated_one(tiny_source: DatasetSource) -> None:
    shutil.copy(tiny_source.images / "05.png", tiny_source.images / "00-copy.png")
    gathered = import_dataset(tiny_source, max_pixels=100_000)
    assert "05.png" in file_names(gathered.pool)
    assert len(gathered.pool) == 12
    assert gathered.duplicates_collapsed == 1
    [note] = gathered.report.notes
    assert (note.item, note.reason) == ("00-copy.png", "same bytes as 05.png, collapsed")


def test_duplicates_that_disagree_on_boxes_are_noted(tiny_source: DatasetSource) -> None:
    shutil.copy(tiny_source.images / "05.png", tiny_source.images / "06.png")
    document = json.loads(tiny_source.annotations.read_text())
    document["images"][6] |= {key: document["images"][5][key] for key in ("width", "height")} | {"reviewed": True}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 6]
    files.write_json(tiny_source.annotations, document)
    gathered = import_dataset(tiny_source, max_pixels=100_000)
    assert "its boxes differ" in gathered.report.notes[0].reason
    kept = next(record for record in gathered.pool if record.file_name == "05.png")
    assert kept.boxes


def test_duplicate_of_a_validation_image_leaves_the_pool(tiny_source: DatasetSource) -> None:
    val = write_val_split(tiny_source, {2, 3})
    shutil.copy(tiny_source.images / "02.png", tiny_source.images / "leak.png")
    gathered = import_with_val(tiny_source, val)
    assert gathered.val_duplicates_dropped == 1
    assert not {r.metadata.sha256 for r in gathered.pool} & {r.metadata.sha256 for r in gathered.val or ()}
    assert gathered.report.notes[0].item == "leak.png"
