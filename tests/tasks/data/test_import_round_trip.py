"""One data set written in every format, as tools lay it out, makes one and the same campaign."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tasks.data.dataset_import import ImportedDataset, import_dataset
from tasks.data.dataset_source import DatasetSource
from tasks.data.formats.base import AnnotationFormat, ParsedBox, ParsedClass, ParsedDocument, ParsedImage
from tasks.data.formats.coco import write_coco
from tasks.data.formats.cvat import write_cvat
from tasks.data.formats.label_studio import write_label_studio
from tasks.data.formats.voc import write_voc
from tasks.data.formats.yolo import write_yolo
from tests.tasks.data.test_import_cases import picture

CLASSES = ("bolt", "nut")
SPLITS = {"train": 9, "valid": 4, "test": 3}
FORMATS: tuple[AnnotationFormat, ...] = ("coco", "voc", "yolo", "cvat", "label_studio")

Campaign = dict[str, list[tuple[str, tuple[float, ...]]]]


def documents(folder: Path) -> dict[str, ParsedDocument]:
    """Pictures below ``folder`` and what is drawn on them; one image of each split is listed without boxes."""
    random = np.random.default_rng(2)
    found = {}
    for number, (split, count) in enumerate(SPLITS.items()):
        images = []
        for index in range(count):
            name = f"p{index}.png"
            path = folder / split / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(100 * number + index).save(path)
            boxes = []
            for _ in range(0 if index == 0 else int(random.integers(1, 4))):
                x, y, width, height = random.uniform([2, 2, 8, 8], [50, 40, 40, 28]).round(2).tolist()
                category = CLASSES[int(random.integers(2))]
                boxes.append(ParsedBox(category, (x, y, x + width, y + height), entry=f"annotations[{len(boxes)}]"))
            images.append(ParsedImage(name, name, tuple(boxes), width_px=96, height_px=72))
        classes = tuple(ParsedClass(k, name) for k, name in enumerate(CLASSES))
        found[split] = ParsedDocument("coco", split, classes, tuple(images))
    return found


def write(wanted: AnnotationFormat, split: str, document: ParsedDocument) -> Mapping[str, bytes]:
    """Files of one split, as exports have them."""
    if wanted == "coco":
        return {f"{split}/_annotations.coco.json": write_coco(document)}
    if wanted == "cvat":
        return {f"{split}/annotations.xml": write_cvat(document)}
    if wanted == "label_studio":
        return {f"{split}/project.json": write_label_studio(document)}
    files = dict(write_voc(document) if wanted == "voc" else write_yolo(document))
    named = {name: f"{split}/labels/{name}" for name in files} | {"data.yaml": "data.yaml"}
    return {named[name]: content for name, content in files.items()}


def content_of(result: ImportedDataset) -> tuple[Campaign, Campaign, list[str]]:
    """Boxes by image id of pool and validation set, and the classes."""
    pool, val = (
        {record.image_id: sorted((b.category, b.xyxy_px) for b in record.boxes or ()) for record in records}
        for records in (result.pool, result.val or ())
    )
    return pool, val, sorted(result.class_names)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("wanted", FORMATS)
def test_every_format_gives_the_same_campaign(tmp_path: Path, wanted: AnnotationFormat, packed: bool) -> None:
    root = tmp_path / "export"
    drawn = documents(root)
    for split, document in drawn.items():
        for name, content in write(wanted, split, document).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    source = root
    if packed:
        source = tmp_path / "export.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in sorted(root.rglob("*.*")):
                archive.write(path, path.relative_to(root).as_posix())
    result = import_dataset(DatasetSource(dataset=source), max_pixels=100_000)
    assert result.format == wanted
    assert all(account.balances for account in result.accounts)
    assert result.accounts[0].parts["left out"] == SPLITS["test"] + 1  # and the unreviewed one of validation
    assert {part: n for part, n in result.accounts[1].parts.items() if n} == {"annotated": 11, "unlabeled": 2}
    pool, val, classes = content_of(result)
    assert classes == list(CLASSES)
    assert (len(pool), len(val)) == (SPLITS["train"], SPLITS["valid"] - 1)
    by_name = {record.file_name.split("/")[-1]: record for record in result.pool}
    for image in drawn["train"].images:
        boxes = by_name[image.name].boxes
        truth = sorted((box.category, box.xyxy) for box in image.boxes)
        read = sorted((box.category, box.xyxy_px) for box in boxes or ())
        assert [name for name, _ in read] == [name for name, _ in truth]
        assert np.allclose([corners for _, corners in read], [corners for _, corners in truth], atol=0.01)
        assert (boxes is None) is (not truth)


def test_the_test_split_is_used_where_the_user_asks(tmp_path: Path) -> None:
    from tasks.data.import_policy import ImportPolicy

    root = tmp_path / "export"
    for split, document in documents(root).items():
        (root / split / "_annotations.coco.json").write_bytes(write_coco(document))
    taken = {}
    for role in ("train", "val", "leave-out"):
        policy = ImportPolicy(test_split=role)  # type: ignore[arg-type]
        result = import_dataset(DatasetSource(dataset=root, policy=policy), max_pixels=100_000)
        taken[role] = len(result.pool), len(result.val or ())
        assert all(account.balances for account in result.accounts)
    assert taken == {"train": (12, 3), "val": (9, 5), "leave-out": (9, 3)}
