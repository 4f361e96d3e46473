"""The drawn data: true boxes, a long tail, and the same bytes each time."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.data.dataset_import import import_dataset
from tasks.data.dataset_source import DatasetSource
from tasks.data.import_policy import ImportPolicy
from tasks.data.import_report import Reason
from tasks.demo import DIGITS_PARAMS_FILE, DigitsParams, generate_dataset, load_digits_params
from tasks.params import load_params
from tasks.runtime.errors import UserError
from tasks.storage import files

ROOT = Path(__file__).parents[3]
PARAMS = load_params(ROOT / "params.yaml")
DIGITS = load_digits_params(ROOT / DIGITS_PARAMS_FILE)
SMALL = DigitsParams(pool_images=40, val_images=12, seed_images=8, calibration_images=4)


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data as `gleaner demo` draws them."""
    folder = tmp_path_factory.mktemp("drawn")
    generate_dataset(folder, params=DIGITS, classes=PARAMS.classes, seed=PARAMS.seed)
    return folder


def document(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


def boxes_per_class(content: dict[str, Any]) -> Counter[str]:
    names = {category["id"]: category["name"] for category in content["categories"]}
    return Counter(names[annotation["category_id"]] for annotation in content["annotations"])


def test_importer_takes_all_of_it_without_a_word(dataset_folder: Path) -> None:
    for name, number in (("annotations.json", 300), ("val.json", 60)):
        policy = ImportPolicy(unannotated="empty")
        source = DatasetSource("coco", dataset_folder / name, dataset_folder / "images", policy=policy)
        result = import_dataset(source, max_pixels=1_000_000)
        listed = result.accounts[1]
        assert listed.total == number == listed.parts["annotated"] + listed.parts["empty"]
        assert not result.report.rejected
        assert {entry.code for entry in result.report.notes} <= {Reason.DUPLICATE}  # drawn on purpose
        assert not result.report.refused_boxes


def test_pool_has_a_long_tail_and_validation_measures_every_class(dataset_folder: Path) -> None:
    pool = boxes_per_class(document(dataset_folder, "annotations.json"))
    shares = [pool[name] / pool.total() for name in PARAMS.classes]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.35
    assert 0.02 < shares[-1] < 0.08
    val = boxes_per_class(document(dataset_folder, "val.json"))
    assert min(val[name] for name in PARAMS.classes) >= 10


def test_sizes_of_pictures_and_digits(dataset_folder: Path) -> None:
    content = document(dataset_folder, "annotations.json")
    sides = [(image["width"], image["height"]) for image in content["images"]]
    assert min(min(pair) for pair in sides) >= 160
    assert max(max(pair) for pair in sides) <= 320
    portrait = sum(height > width for width, height in sides) / len(sides)
    assert 0.3 < portrait < 0.7
    heights = [max(annotation["bbox"][2:]) for annotation in content["annotations"]]
    assert 16 <= min(heights) < 32
    assert 70 < max(heights) <= 90


def test_some_are_empty_and_some_are_exact_copies(dataset_folder: Path) -> None:
    content = document(dataset_folder, "annotations.json")
    digests = Counter(
        hashlib.sha256((dataset_folder / "images" / image["file_name"]).read_bytes()).hexdigest()
        for image in content["images"]
    )
    assert len(digests) == 300 - 9
    shown = {annotation["image_id"] for annotation in content["annotations"]}
    assert 10 <= 300 - len(shown) <= 25


def test_copies_carry_the_boxes_of_their_originals(dataset_folder: Path) -> None:
    content = document(dataset_folder, "annotations.json")
    seen: dict[bytes, list[list[int]]] = {}
    for image in content["images"]:
        boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        assert seen.setdefault((dataset_folder / "images" / image["file_name"]).read_bytes(), boxes) == boxes


def test_boxes_are_where_the_digits_are(dataset_folder: Path) -> None:
    """Inside its box an easy digit differs from the same background elsewhere; just outside it does not."""
    content = document(dataset_folder, "annotations.json")
    per_image = Counter(annotation["image_id"] for annotation in content["annotations"])
    contrast_inside, contrast_outside = [], []
    for annotation in content["annotations"]:
        if per_image[annotation["image_id"]] > 1:
            continue
        image = content["images"][annotation["image_id"] - 1]
        pixels = np.asarray(Image.open(dataset_folder / "images" / image["file_name"]).convert("L"), dtype=np.float64)
        x, y, width, height = annotation["bbox"]
        ring = pixels[max(0, y - 6) : y + height + 6, max(0, x - 6) : x + width + 6].copy()
        inside = pixels[y : y + height, x : x + width]
        contrast_inside.append(inside.std())
        top, left = min(y, 6), min(x, 6)
        ring[top : top + height, left : left + width] = np.nan
        contrast_outside.append(np.nanstd(ring))
    assert len(contrast_inside) > 50
    assert np.median(contrast_inside) > 3 * np.median(contrast_outside)


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate_dataset(tmp_path / name, params=SMALL, classes=["zero", "nine"], seed=seed)
    digests = {name: files.sha256_tree(tmp_path / name) for name in "abc"}
    assert digests["a"] == digests["b"] != digests["c"]


def test_only_digits_can_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classes has 'cat', expected names of digits"):
        generate_dataset(tmp_path, params=SMALL, classes=["zero", "cat"], seed=1)
