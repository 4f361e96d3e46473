"""A delivery of four images, and the two kinds of storage it can be published in."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.annotation.providers import folder_inbox
from flows.annotation.providers.base import AnnotationBatch, RawAnnotation
from flows.annotation.providers.folder import FolderProvider
from tasks.data.paths import image_id_from_sha256
from tasks.data.schemas import AnnotationTask, Prediction
from tasks.params import load_params
from tasks.storage import files
from tasks.storage.backends import open_storage
from tests.flows.small_campaign import REPOSITORY
from tests.services import S3Server

CLASSES = ("cat", "dog, small")
BOXES = ((("cat", (3.0, 4.5, 20.25, 30.0)),), (("dog, small", (0.0, 0.0, 40.0, 32.0)), ("cat", (1, 1, 9, 9))), (), ())
WIDTH, HEIGHT = 40, 32


@dataclass
class Team:
    """Annotators who share a directory or bucket, and the provider that works with them."""

    root: Path
    location: str
    delivery: AnnotationBatch
    tasks: list[AnnotationTask]
    double_annotation_frac: float = 0.0

    @property
    def provider(self) -> FolderProvider:
        changed = {"kind": "folder", "url": self.location, "double_annotation_frac": self.double_annotation_frac}
        params = load_params(REPOSITORY / "params.yaml").provider.model_copy(update=changed)
        return FolderProvider(params, CLASSES, self.root)

    def write_to_inbox(self, name: str, content: bytes | str | dict[str, Any], age_s: float = 3600) -> None:
        """Write a file into the inbox; it was last changed ``age_s`` ago."""
        text = json.dumps(content) if isinstance(content, dict) else content
        raw = text.encode() if isinstance(text, str) else text
        open_storage(self.location, self.root).write(f"inbox/{name}", raw)
        if not self.location.startswith("s3://"):
            moment = time.time() - age_s
            os.utime(Path(self.location) / "inbox" / name, (moment, moment))

    def read_outbox(self, name: str) -> bytes | None:
        return open_storage(self.location, self.root).read_optional(f"outbox/{name}")

    def list_names(self, folder: str) -> set[str]:
        return {entry.name for entry in open_storage(self.location, self.root).list_files(folder)}

    def collect(self) -> tuple[dict[str, RawAnnotation], list[str]]:
        """Return annotations by image id (at most one each), and the problems."""
        found = self.provider.collect(self.delivery)
        annotations = [raw for raw in found if "problem" not in raw]
        by_id = {raw["image_id"]: raw for raw in annotations}
        assert len(by_id) == len(annotations)
        return by_id, [raw["problem"] for raw in found if "problem" in raw]

    def coco(self, boxes: Sequence[tuple[int, str, Sequence[float]]], **more: Any) -> dict[str, Any]:
        """Build a COCO document as a tool writes it: all images of the batch, boxes (image number, class, xywh)."""
        numbers = {name: n for n, name in enumerate(CLASSES, start=7)}
        return {
            "images": [
                {"id": n, "file_name": f"{task.image_id}.png", "width": WIDTH, "height": HEIGHT}
                for n, task in enumerate(self.tasks)
            ],
            "annotations": [
                {"id": k, "image_id": n, "category_id": numbers[name], "bbox": list(box)}
                for k, (n, name, box) in enumerate(boxes)
            ],
            "categories": [{"id": n, "name": name} for name, n in numbers.items()],
            **more,
        }


def make_team(root: Path, location: str, uri_of: Callable[[str], str] = lambda name: f"data/images/{name}") -> Team:
    tasks = []
    for number, boxes in enumerate(BOXES):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        (root / "data" / "images").mkdir(parents=True, exist_ok=True)
        path = root / "data" / "images" / "new.png"
        Image.fromarray(pixels).save(path)
        image_id = image_id_from_sha256(files.sha256_file(path))
        path.rename(path.with_name(f"{image_id}.png"))
        predictions = tuple(Prediction(category=name, xyxy_px=corners, score=0.5) for name, corners in boxes)
        tasks.append(
            AnnotationTask(
                image_id=image_id, uri=uri_of(f"{image_id}.png"), width_px=WIDTH, height_px=HEIGHT, rank=number + 1,
                reason="why", uncertainty=0.5, predictions=predictions, model_digest="ab" * 32,
            )
        )  # fmt: skip
    folder = root / "deliveries" / "batch-0003"
    lines = "".join(task.model_dump_json() + "\n" for task in tasks)
    files.write_bytes(folder / "manifest.jsonl", lines.encode())
    ids = tuple(task.image_id for task in tasks)
    delivery = AnnotationBatch(3, "key of batch 3", folder, ids, "2026-03-01T10:00:00+00:00", "prepared", None)
    return Team(root, location, delivery, tasks)


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """Annotators who share a directory."""
    (tmp_path / "share").mkdir()
    return make_team(tmp_path / "campaign", str(tmp_path / "share"))


@pytest.fixture
def s3_team(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Team:
    """Annotators who share a bucket; files are read at once."""
    s3_server.set_environment(monkeypatch)
    monkeypatch.setattr(folder_inbox, "_STABLE_AFTER_S", 0.0)
    return make_team(tmp_path / "campaign", f"s3://{s3_server.new_bucket()}/team/campaign")


@pytest.fixture(params=["directory", pytest.param("bucket", marks=pytest.mark.integration)])
def any_team(request: pytest.FixtureRequest) -> Team:
    """Annotators with either kind of storage."""
    name = "team" if request.param == "directory" else "s3_team"
    found: Team = request.getfixturevalue(name)
    return found
