"""Shared inputs: small, drawn by code, real files in real layouts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw

from tasks.data.dataset_source import DatasetSource
from tasks.data.initial_split import CampaignPlan, create_campaign_data
from tasks.data.paths import Workspace
from tasks.params.template import render_params
from tasks.storage import files
from tests.full_disk import full_disk  # noqa: F401
from tests.services import (  # noqa: F401 (fixtures for every test)
    mlflow_url,
    postgres_database,
    postgres_url,
    prefect_url,
    s3_server,
)

TINY_CLASSES = ("square", "disc")
_OTHER_MARKS = {"integration", "e2e", "services", "cluster", "gpu"}

# How fast examples are made and run says something about the machine, not about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``unit`` what has no other mark, before ``-m`` chooses; files with whole nights come first.

    Files run side by side: with the short ones last, no process waits for minutes for a long one to end.
    """
    for item in items:
        if not _OTHER_MARKS & {mark.name for mark in item.iter_markers()}:
            item.add_marker("unit")
    long_files = {item.path for item in items if item.get_closest_marker("e2e")}
    items.sort(key=lambda item: item.path not in long_files)


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Path:
    """Folder in COCO layout: ``images/`` with 12 PNGs of 64 to 96 px, ``annotations.json`` with two classes.

    Every image shows one or two figures, but for the last, which somebody found empty.
    """
    folder = tmp_path / "tiny_coco"
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(3)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(12):
        width, height = (int(side) for side in random.integers(64, 97, size=2))
        image = Image.fromarray(random.integers(90, 130, size=(height, width, 3)).astype(np.uint8))
        for _ in range(0 if number == 11 else 1 + number % 2):
            side = int(random.integers(16, 31))
            x, y = int(random.integers(0, width - side)), int(random.integers(0, height - side))
            category = int(random.integers(len(TINY_CLASSES)))
            draw = ImageDraw.Draw(image)
            shape = (draw.rectangle, draw.ellipse)[category]
            shape([x, y, x + side - 1, y + side - 1], fill=((240, 220, 40), (30, 60, 220))[category])
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": category, "bbox": [x, y, side, side]}
            )
        image.save(folder / "images" / f"{number:02d}.png")
        entry = {"id": number, "file_name": f"{number:02d}.png", "width": width, "height": height}
        images.append(entry if number < 11 else {**entry, "reviewed": True})
    categories = [{"id": number, "name": name} for number, name in enumerate(TINY_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    files.write_json(folder / "annotations.json", content)
    return folder


@pytest.fixture
def tiny_source(tiny_coco: Path) -> DatasetSource:
    """``tiny_coco`` as ``gleaner init`` is pointed at it."""
    return DatasetSource("coco", tiny_coco / "annotations.json", tiny_coco / "images", classes=TINY_CLASSES)


@pytest.fixture
def tiny_plan() -> CampaignPlan:
    """Of the 12 images: 3 validation, 2 calibration, 3 seed, 4 left to choose from."""
    return CampaignPlan(
        seed=5,
        seed_images=3,
        calibration_images=2,
        val_frac=0.25,
        oracle=True,
        imported_at="2026-01-01T00:00:00+00:00",
        max_pixels=1_000_000,
    )


@pytest.fixture
def tiny_campaign(tmp_path: Path, tiny_source: DatasetSource, tiny_plan: CampaignPlan) -> Workspace:
    """A workspace with params.yaml, ``data/`` and ``oracle/``; no git, no DVC."""
    workspace = Workspace(tmp_path / "tiny_campaign")
    create_campaign_data(tiny_source, tiny_plan, workspace)
    template = (Path(__file__).parents[1] / "params.yaml").read_text()
    files.write_bytes(workspace.params, render_params(template, classes=TINY_CLASSES, overrides=()).encode())
    return workspace
