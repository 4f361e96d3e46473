import json
import zipfile
from pathlib import Path

import pytest

from tasks.data.archives import FileSource, open_source
from tasks.data.errors import UnsupportedFormatError
from tasks.data.formats.coco import write_coco
from tasks.data.formats.cvat import write_cvat
from tasks.data.formats.detect import detect, read_split, split_of
from tasks.data.formats.label_studio import write_label_studio
from tasks.data.formats.voc import write_voc
from tasks.data.formats.yolo import YoloClasses
from tests.tasks.data.formats.samples import BOLT, NUT, document, image, shapes

DOCUMENT = document(image("p1.jpg", BOLT, status="labeled"), image("p2.jpg", NUT, status="labeled"))
SHEETS = dict(write_voc(DOCUMENT))
LABEL = b"1 0.5 0.5 0.2 0.2\n"


@pytest.fixture(params=["folder", "zip"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def laid_out(tmp_path: Path, files: dict[str, bytes | str], kind: str = "folder") -> FileSource:
    """The files, with a picture for each name that ends in .jpg."""
    root = tmp_path / "set"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    if kind == "folder":
        return open_source(root)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in files:
            archive.write(root / name, name)
    return open_source(tmp_path / "set.zip")


def pictures(folder: str, count: int = 2) -> dict[str, bytes | str]:
    return {f"{folder}p{n}.jpg": b"" for n in range(1, count + 1)}


def test_roboflow_coco(tmp_path: Path, kind: str) -> None:
    files: dict[str, bytes | str] = {"README.roboflow.txt": "parts\n", "README.dataset.txt": "x"}
    for split in ("train", "valid", "test"):
        files |= {f"{split}/_annotations.coco.json": write_coco(DOCUMENT), **pictures(f"{split}/")}
    source = laid_out(tmp_path, files, kind)
    found = detect(source)
    data = found.only()
    assert (data.format, data.tool) == ("coco", "Roboflow")
    assert [(s.split, s.annotations, s.image_folders, s.num_images) for s in data.splits] == [
        ("train", ("train/_annotations.coco.json",), ("train",), 2),
        ("val", ("valid/_annotations.coco.json",), ("valid",), 2),
        ("test", ("test/_annotations.coco.json",), ("test",), 2),
    ]
    assert (
        "COCO JSON, as Roboflow exports it; train: train/_annotations.coco.json, 2 images in train/" in found.describe()
    )
    assert not found.passed_over
    assert shapes(read_split(source, data, data.splits[0]).images[0]) == shapes(DOCUMENT.images[0])


def test_roboflow_yolo(tmp_path: Path, kind: str) -> None:
    files: dict[str, bytes | str] = {"data.yaml": "names: [bolt, nut]\nnc: 2\ntrain: ../train/images\n"}
    for split in ("train", "valid"):
        files |= {f"{split}/labels/p1.txt": LABEL, f"{split}/labels/p2.txt": b"", **pictures(f"{split}/images/")}
    source = laid_out(tmp_path, files, kind)
    data = detect(source).only()
    assert (data.format, data.classes_file) == ("yolo", "data.yaml")
    assert [(s.split, len(s.annotations), s.image_folders) for s in data.splits] == [
        ("train", 2, ("train/images",)),
        ("val", 2, ("valid/images",)),
    ]
    parsed = read_split(source, data, data.splits[1], size_of=lambda _: (100, 50))
    assert shapes(parsed.images[0]) == [("nut", (40, 20, 60, 30), "box")]
    assert parsed.images[0].name == "valid/labels/p1.txt"


def test_ultralytics_yolo_with_splits_below_images_and_labels(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"coco8.yaml": "names:\n  0: bolt\n  1: nut\n", **pictures("images/train/")}
    files |= {"labels/train/p1.txt": LABEL, "labels/val/p2.txt": LABEL, **pictures("images/val/")}
    data = detect(laid_out(tmp_path, files)).only()
    assert [(s.split, s.annotations, s.image_folders) for s in data.splits] == [
        ("train", ("labels/train/p1.txt",), ("images/train",)),
        ("val", ("labels/val/p2.txt",), ("images/val",)),
    ]


def test_cvat_yolo_with_lists(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "obj.names": "bolt\nnut\n",
        "obj.data": "classes = 2\ntrain = data/train.txt\n",
        "train.txt": "data/obj_train_data/p1.jpg\n",
        "valid.txt": "data/obj_train_data/p2.jpg\n",
        "obj_train_data/p1.txt": LABEL,
        "obj_train_data/p2.txt": LABEL,
        **pictures("obj_train_data/"),
    }
    data = detect(laid_out(tmp_path, files)).only()
    assert (data.tool, data.classes_file) == ("CVAT", "obj.names")
    assert [(s.split, s.annotations, s.image_list) for s in data.splits] == [
        ("train", ("obj_train_data/p1.txt",), "train.txt"),
        ("val", ("obj_train_data/p2.txt",), "valid.txt"),
    ]


def test_label_studio_yolo_with_its_side_files(tmp_path: Path) -> None:
    notes = {"categories": [{"id": 0, "name": "bolt"}], "info": {"contributor": "Label Studio"}}
    files: dict[str, bytes | str] = {"classes.txt": "bolt\nnut\n", "notes.json": json.dumps(notes)}
    files |= {"labels/ab12cd34-p1.txt": LABEL, "images/ab12cd34-p1.jpg": b""}
    found = detect(laid_out(tmp_path, files))
    assert (found.only().tool, found.passed_over) == ("Label Studio", {})


def test_cvat_for_images(tmp_path: Path, kind: str) -> None:
    source = laid_out(tmp_path, {"annotations.xml": write_cvat(DOCUMENT), **pictures("images/")}, kind)
    data = detect(source).only()
    assert (data.format, data.tool) == ("cvat", "CVAT")
    parsed = read_split(source, data, data.splits[0])
    assert shapes(parsed.images[1]) == shapes(DOCUMENT.images[1])


def test_label_studio_json(tmp_path: Path) -> None:
    source = laid_out(tmp_path, {"project-1-at-2026.json": write_label_studio(DOCUMENT), **pictures("upload/1/")})
    data = detect(source).only()
    assert (data.format, data.splits[0].split) == ("label_studio", "all")
    assert len(read_split(source, data, data.splits[0]).images) == 2


def test_voc_with_image_sets(tmp_path: Path, kind: str) -> None:
    files: dict[str, bytes | str] = {f"Annotations/{name}": content for name, content in SHEETS.items()}
    files |= {"ImageSets/Main/train.txt": "p1\n", "ImageSets/Main/val.txt": "p2 1\n", **pictures("JPEGImages/")}
    files |= {"ImageSets/Main/trainval.txt": "p1\np2\n", "ImageSets/Main/bolt_train.txt": "p1 -1\n"}
    files |= {"labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:1,2,3::\n"}
    source = laid_out(tmp_path, files, kind)
    found = detect(source)
    data = found.only()
    assert [(s.split, s.annotations, s.image_folders) for s in data.splits] == [
        ("train", ("Annotations/p1.xml",), ("JPEGImages",)),
        ("val", ("Annotations/p2.xml",), ("JPEGImages",)),
    ]
    assert not found.passed_over
    assert read_split(source, data, data.splits[0]).class_names == ("crack", "bolt")


def test_voc_sheets_in_subfolders_and_other_endings(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"day/p1.xml": SHEETS["p1.xml"], "night/p2.XML": SHEETS["p2.xml"]}
    files |= {"day/p1.jpg": b"", "night/p2.JPG": b""}
    data = detect(laid_out(tmp_path, files)).only()
    assert [(s.split, s.annotations, s.num_images) for s in data.splits] == [("all", ("day/p1.xml", "night/p2.XML"), 2)]


def test_coco_with_a_file_for_each_split(tmp_path: Path) -> None:
    content = write_coco(DOCUMENT)
    files: dict[str, bytes | str] = {f"annotations/instances_{s}2017.json": content for s in ("train", "val")}
    files |= {"annotations/captions_val2017.json": content, **pictures("train2017/"), **pictures("val2017/")}
    data = detect(laid_out(tmp_path, files)).only()
    assert [(s.split, s.annotations, s.image_folders) for s in data.splits] == [
        ("train", ("annotations/instances_train2017.json",), ("train2017",)),
        ("val", ("annotations/instances_val2017.json",), ("val2017",)),
    ]


def test_a_large_document_is_recognized_by_its_ends(tmp_path: Path) -> None:
    filler = [{"id": n, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} for n in range(30_000)]
    images = [{"id": 1, "file_name": "p1.jpg"}]
    content = {"annotations": filler, "images": images, "categories": [{"id": 1, "name": "a"}]}
    assert detect(laid_out(tmp_path, {"big.json": json.dumps(content)})).only().format == "coco"


def test_several_formats_are_named_and_one_can_be_chosen(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"a.json": write_coco(DOCUMENT), "p1.txt": LABEL, "classes.txt": "a\nb\n"}
    found = detect(laid_out(tmp_path, files))
    with pytest.raises(UnsupportedFormatError, match="format is coco, yolo, expected exactly one"):
        found.only()
    assert found.only("yolo").format == "yolo"
    with pytest.raises(UnsupportedFormatError, match="format is none"):
        found.only("voc")


def test_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    shape = {"version": "5.4", "shapes": [], "imagePath": "p1.jpg", "imageHeight": 72}
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
    files: dict[str, bytes | str] = {"p1.json": json.dumps(shape), "r.json": json.dumps(results), "a.csv": "x"}
    found = detect(laid_out(tmp_path, {**files, "b.json": "[1", "c.xml": "<svg/>"}))
    assert found.unsupported == {"p1.json": "labelme JSON", "r.json": "COCO results"}
    assert found.passed_over == {".csv": 1, ".json": 1, ".xml": 1}
    assert "p1.json: labelme JSON, which is not read" in found.describe()
    with pytest.raises(UnsupportedFormatError, match=r"format is labelme JSON \(p1.json\)"):
        found.only()


def test_yolo_without_class_names_needs_them(tmp_path: Path) -> None:
    source = laid_out(tmp_path, {"labels/p1.txt": LABEL, **pictures("images/", 1)})
    data = detect(source).only()
    with pytest.raises(UnsupportedFormatError, match="the class names are missing"):
        read_split(source, data, data.splits[0])
    parsed = read_split(source, data, data.splits[0], classes=YoloClasses(("bolt", "nut"), {}))
    assert parsed.images[0].boxes[0].category == "nut"


def test_truncated_documents_are_recognized_as_what_they_were_to_be(tmp_path: Path) -> None:
    assert detect(laid_out(tmp_path, {"a.json": write_coco(DOCUMENT)[:-30]})).only().format == "coco"


def test_broken_and_blank_label_files_belong_to_their_pictures(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"p{n}.txt": LABEL for n in range(3, 9)}
    files |= {"p1.txt": "bolt at the top", "p2.txt": "", "p9.txt": "?", "notes.txt": "", "todo.txt": "ask ann"}
    source = laid_out(tmp_path, {**files, "train.txt": "p3.jpg\n", "classes.txt": "a\nb\n", **pictures("", 9)})
    found = detect(source)
    train, rest = found.only().splits
    assert train.annotations == ("p3.txt",)
    assert set(rest.annotations) == {f"p{n}.txt" for n in (1, 2, 4, 5, 6, 7, 8, 9)} | {"notes.txt"}
    assert found.passed_over == {".txt": 1}
    parsed = read_split(source, found.only(), rest)
    assert [image.name for image in parsed.images if not image.is_usable] == ["p1.txt", "p9.txt"]


def test_blank_files_beside_another_format_are_no_labels(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {**SHEETS, "p1.txt": "", "notes.txt": "\n", "p3.xml": "<broken", **pictures("", 3)}
    found = detect(laid_out(tmp_path, files))
    assert found.only().splits[0].annotations == ("p1.xml", "p2.xml", "p3.xml")
    assert found.passed_over == {".txt": 2}
    blank: dict[str, bytes | str] = {"labels/p1.txt": "", "images/p1.jpg": ""}
    assert detect(laid_out(tmp_path / "b", blank)).only().format == "yolo"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/a.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("annotations/instances_val2017.json", "val"),
        ("Test2/a.json", "test"),
        ("trainstation.json", "all"),
        ("a.json", "all"),
    ],
)
def test_the_split_of_a_path(name: str, split: str) -> None:
    assert split_of(name) == split
