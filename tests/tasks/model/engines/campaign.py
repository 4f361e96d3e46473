"""A workspace with a random detector and few images, on which stage infer runs as a process of its own."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from tasks.data import schemas
from tasks.data.paths import Workspace
from tasks.model.detector import new_detector
from tasks.storage import files
from tests.tasks import test_detection_stages as stages

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs gleaner[ray]")


class Campaign:
    """``num_images`` images of the pool in shards, and so pieces, of two; one image is labeled."""

    def __init__(self, root: Path, num_images: int = 8) -> None:
        self.workspace = Workspace(root)
        self.num_pieces = -(-num_images // 2) + 1
        self.env: dict[str, str] = {}
        self._write_params()
        model = stages.stage_params(root).model
        torch.manual_seed(0)
        (root / "derived" / "train").mkdir(parents=True)
        detector = new_detector(model, len(stages.CLASSES), 0.0, root, "cpu")
        torch.save(detector.state_dict(), root / "derived" / "train" / "teacher.pth")
        sizes = [stages.SIZES[number % len(stages.SIZES)] for number in range(num_images)]
        images = [stages.save_image(root, number, size) for number, size in enumerate(sizes)]
        self._last_uri = str(max(images[:-1], key=lambda image: str(image["image_id"]))["uri"])
        assembled = self.workspace.derived("assemble")
        labels: dict[str, Any] = {"boxes_xyxy": [10.0, 10.0, 40.0, 50.0], "class_ids": [1], "batch": 0}
        annotated = [image | labels for image in images[-2:]]
        files.write_table(assembled / "unlabeled.parquet", pa.Table.from_pylist(images[:-2], schemas.UNLABELED))
        files.write_table(assembled / "calibration.parquet", pa.Table.from_pylist(annotated, schemas.ANNOTATED))
        files.write_table(assembled / "labeled.parquet", pa.Table.from_pylist(annotated[1:], schemas.ANNOTATED))

    def _write_params(self, *settings: str) -> None:
        stages.write_params(self.workspace.root, "infer.shard_size=2", *settings)

    def start(self, *settings: str) -> subprocess.Popen[str]:
        """Begin the stage with these settings."""
        self._write_params(*settings)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env = {**kept, "PYTHONPATH": str(stages.REPOSITORY), "OMP_NUM_THREADS": "1", **self.env}
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tasks.infer"],
            cwd=self.workspace.root,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *settings: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        process = self.start(*settings)
        stdout, stderr = process.communicate()
        assert not check or process.returncode == 0, stderr
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def outputs(self) -> dict[str, str]:
        """Digests of the stage's files."""
        return {path.name: files.sha256_file(path) for path in self.workspace.derived("infer").iterdir()}

    def finished_pieces(self) -> set[str]:
        """Names of the pieces that a run that did not end has left."""
        return {path.name for path in self.workspace.scratch("infer").rglob("piece-*.parquet")}

    @contextmanager
    def spoilt_image(self) -> Iterator[str]:
        """Name of an image of the pool's last piece; it cannot be opened within the block."""
        path = self.workspace.root / self._last_uri
        content = path.read_bytes()
        path.write_bytes(b"no image")
        try:
            yield path.name
        finally:
            path.write_bytes(content)
