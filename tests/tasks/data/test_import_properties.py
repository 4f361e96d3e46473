"""Whatever an import is pointed at, it ends in a campaign's parts or in a named error, and its accounts balance.

``GLEANER_EXAMPLES`` sets the number of examples of each test; the usual number keeps the suite short.
"""

import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.data.dataset_import import import_dataset
from tasks.data.dataset_source import DatasetSource
from tasks.data.image_record import BoxFate
from tasks.data.import_policy import ImportPolicy
from tasks.data.import_report import Reason
from tasks.data.initial_split import CampaignData, CampaignPlan, examine_source
from tasks.runtime.errors import UserError
from tests.tasks.data.formats import test_readers_properties as parts

EXAMPLES = settings(max_examples=int(os.environ.get("GLEANER_EXAMPLES", "60")), deadline=None)
SIZE = (96, 72)
PLAN = CampaignPlan(
    seed=3,
    seed_images=1,
    calibration_images=0,
    val_frac=0.2,
    oracle=True,
    imported_at="2026-01-01T00:00:00+00:00",
    max_pixels=10_000,
)
KINDS = ("good", "other", "copy", "turned", "gray", "pages", "deep", "large", "cut", "text", "blank")
"""Content of a file that ends like a picture; ``copy`` has the bytes of the first good one."""
NAMES = [f"{folder}p{n}.jpg" for folder in ("", "day/", "up/") for n in range(4)]
BASE = [f"base{n}.jpg" for n in range(4)]
"""Images that are there in every example, each with one good box, so that there is a campaign to be made."""


@cache
def content(kind: str, number: int) -> bytes:
    seed = 0 if kind == "copy" else number
    size = (200, 100) if kind == "large" else SIZE
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    stream = io.BytesIO()
    if kind == "text":
        return b"no picture"
    if kind == "blank":
        return b""
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(stream, "JPEG", exif=exif)
    elif kind == "gray":
        picture.convert("L").save(stream, "PNG")
    elif kind == "pages":
        picture.save(stream, "TIFF", save_all=True, append_images=[picture.rotate(180)])
    elif kind == "deep":
        Image.fromarray(np.full((72, 96), 40_000, dtype=np.uint16)).save(stream, "PNG")
    else:
        picture.save(stream, "JPEG")
    return stream.getvalue()[:300] if kind == "cut" else stream.getvalue()


pictures = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(KINDS[:1] * 6 + KINDS), max_size=7)
good_boxes = st.fixed_dictionaries(
    {"image_id": st.integers(0, 5), "category_id": st.integers(0, 1), "bbox": st.just([10, 12, 30, 20])},
    optional={"iscrowd": st.sampled_from([0, 1])},
)
good_images = st.lists(st.sampled_from(NAMES), min_size=2, max_size=6, unique=True).map(
    lambda names: [{"id": n, "file_name": name, "width": 96, "height": 72} for n, name in enumerate(names)]
)
base_images = [{"id": 100 + n, "file_name": name, "width": 96, "height": 72} for n, name in enumerate(BASE)]
base_boxes = [{"image_id": 100 + n, "category_id": 0, "bbox": [5, 6, 30, 40]} for n in range(len(BASE))]
coco_documents = st.tuples(
    good_images,
    st.lists(parts.coco_images, max_size=3),
    st.lists(good_boxes, min_size=1, max_size=6),
    st.lists(parts.coco_boxes, max_size=4),
    st.lists(parts.coco_classes, max_size=2),
).map(
    lambda found: {
        "images": [*found[0], *found[1], *base_images],
        "annotations": [*found[2], *found[3], *base_boxes],
        "categories": [{"id": 0, "name": "bolt"}, {"id": 1, "name": "nut"}, *found[4]],
    }
)
policies = st.builds(
    ImportPolicy,
    polygons=st.sampled_from(["refuse", "box"]),
    unannotated=st.sampled_from(["unlabeled", "empty"]),
    test_split=st.sampled_from(["leave-out", "train", "val"]),
    follow_links=st.booleans(),
)


@contextmanager
def folder() -> Iterator[Path]:
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as path:
        yield Path(path)


def write(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_pictures(root: Path, kinds: dict[str, str]) -> Path:
    known = [*NAMES, *BASE]
    kinds = kinds | dict.fromkeys(BASE, "good")
    return write(root, {name: content(kind, known.index(name)) for name, kind in kinds.items()})


def examine(source: DatasetSource) -> CampaignData | None:
    """Read and split; an error has a problem in words."""
    message = ""
    try:
        accounts = import_dataset(source, max_pixels=PLAN.max_pixels).accounts
        assert all(account.balances for account in accounts)
        data = examine_source(source, PLAN)
    except UserError as error:
        message = error.problem
    if message:
        message.encode()
        event("refused as a whole")
        return None
    event("imported")
    check(data)
    return data


def check(data: CampaignData) -> None:
    files, listed, boxes = data.accounts
    for account in data.accounts:
        assert account.balances, account.describe()
        assert all(number >= 0 for number in account.parts.values()), account.describe()
    counts = data.counts
    assert files.parts["pool"] == counts["pool_images"]
    assert files.parts["validation"] == counts["val_images"]
    labeled = listed.parts["annotated"] + listed.parts["empty"]
    assert counts["annotated_images"] <= labeled
    assert counts["boxes"] <= boxes.parts["kept"] + boxes.parts["clipped"]
    known = {*Reason, *(f"box_{fate.name.lower()}" for fate in BoxFate)}
    for entry in (*data.rejected, *data.left_out, *data.notes, *data.refused_boxes):
        assert entry["code"] in known
        assert entry["item"]
        json.dumps(entry, ensure_ascii=False).encode()


def packed(root: Path) -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(root))
    shutil.rmtree(root)
    return path


@EXAMPLES
@given(pictures, coco_documents, policies, st.none() | coco_documents, st.booleans())
def test_coco_beside_its_images(
    kinds: dict[str, str], document: Any, policy: ImportPolicy, val: Any, is_zip: bool
) -> None:
    with folder() as root:
        images = write_pictures(root / "images", kinds)
        files = {"a.json": json.dumps(document).encode()} | (
            {} if val is None else {"val.json": json.dumps(val).encode()}
        )
        write(root, files)
        source = DatasetSource(
            "coco",
            root / "a.json",
            packed(images) if is_zip else images,
            None if val is None else root / "val.json",
            policy=policy,
        )
        data = examine(source)
        if data is not None:
            entries = [entry for part in (document, val) if part for entry in part["images"]]
            assert data.accounts[1].total == len(entries)
            boxes = [box for part in (document, val) if part for box in part["annotations"]]
            assert data.accounts[2].total == len(boxes)


VOC_SHEET = (
    "<annotation><size><width>96</width><height>72</height></size><object><name>bolt</name><bndbox><xmin>9</xmin>"
    "<ymin>9</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"
)
EMPTY_SHEET = "<annotation><size><width>96</width><height>72</height></size><status>empty</status></annotation>"
voc_good = st.sampled_from([VOC_SHEET, EMPTY_SHEET])
splits = st.sampled_from(["", "train/", "valid/", "test/"])
exports = st.lists(
    st.tuples(splits, st.sampled_from(KINDS[:1] * 6 + KINDS), voc_good | parts.voc_sheets | st.none()),
    min_size=1,
    max_size=7,
)


@EXAMPLES
@given(exports, policies, st.booleans())
def test_an_export_of_voc_sheets_with_splits(found: list[Any], policy: ImportPolicy, is_zip: bool) -> None:
    files: dict[str, bytes] = {"notes.txt": b"?"}
    for number, (split, kind, sheet) in enumerate([*[("train/", "good", VOC_SHEET)] * len(BASE), *found]):
        files[f"{split}{number}.jpg"] = content(kind, number)
        if sheet is not None:
            files[f"{split}{number}.xml"] = sheet.encode("utf-8", "xmlcharrefreplace")
    with folder() as root:
        export = write(root / "export", files)
        data = examine(DatasetSource(dataset=packed(export) if is_zip else export, policy=policy))
        if data is not None:
            assert data.accounts[0].total == len(files)


YOLO_LABELS = "0 0.5 0.5 0.4 0.4\n1 0.2 0.2 0.2 0.2\n"
yolo_good = st.just(YOLO_LABELS)
yolo_exports = st.lists(
    st.tuples(splits, st.sampled_from(KINDS[:1] * 6 + KINDS), yolo_good | parts.label_files | st.none()),
    min_size=1,
    max_size=7,
)


@EXAMPLES
@given(yolo_exports, policies, st.booleans())
def test_an_export_of_yolo_labels_with_splits(found: list[Any], policy: ImportPolicy, is_zip: bool) -> None:
    files: dict[str, bytes] = {"data.yaml": b"names: [bolt, nut]\nnc: 2\n"}
    for number, (split, kind, labels) in enumerate([*[("train/", "good", YOLO_LABELS)] * len(BASE), *found]):
        files[f"{split}images/{number}.jpg"] = content(kind, number)
        if labels is not None:
            files[f"{split}labels/{number}.txt"] = labels.encode()
    with folder() as root:
        export = write(root / "export", files)
        data = examine(DatasetSource(dataset=packed(export) if is_zip else export, policy=policy))
        if data is not None:
            assert data.accounts[0].total == len(files)


def label_studio_task(name: str) -> dict[str, Any]:
    value = {"x": 10, "y": 10, "width": 30, "height": 40, "rectanglelabels": ["bolt"]}
    region = {"type": "rectanglelabels", "original_width": 96, "original_height": 72, "value": value}
    data = {"image": f"/data/upload/1/{name}", "width_px": 96, "height_px": 72}
    return {"id": 1, "data": data, "annotations": [{"result": [region]}]}


label_studio_good = st.lists(st.sampled_from(NAMES).map(label_studio_task), max_size=3)


@EXAMPLES
@given(pictures, label_studio_good, st.lists(parts.tasks, max_size=3), policies)
def test_label_studio_beside_its_images(
    kinds: dict[str, str], good: list[Any], other: list[Any], policy: ImportPolicy
) -> None:
    with folder() as root:
        images = write_pictures(root / "images", kinds)
        write(root, {"a.json": json.dumps([*map(label_studio_task, BASE), *good, *other]).encode()})
        examine(DatasetSource("label_studio", root / "a.json", images, policy=policy))


@EXAMPLES
@given(pictures, st.lists(parts.cvat_images, max_size=3), st.lists(st.sampled_from(NAMES), max_size=5), policies)
def test_cvat_beside_its_images(kinds: dict[str, str], other: list[str], good: list[str], policy: ImportPolicy) -> None:
    box = '<box label="bolt" xtl="5" ytl="6" xbr="40" ybr="50"/>'
    listed = [f'<image name="{name}" width="96" height="72">{box}</image>' for name in (*BASE, *good)]
    with folder() as root:
        images = write_pictures(root / "images", kinds)
        write(
            root, {"a.xml": f"<annotations><version>1.1</version>{''.join([*listed, *other])}</annotations>".encode()}
        )
        examine(DatasetSource("cvat", root / "a.xml", images, policy=policy))
