"""The exported program alone: its resize is training's, and it runs where neither torch nor Gleaner is."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detectron_ext.augmentation import AugmentationConfig
from detectron_ext.augmentation import resize as resize_for_training
from tasks.export.measure import measure_speed
from tasks.export.package import PROGRAM, file_digests, write_export
from tasks.export.packages import Format
from tasks.export.runtime import ExportedDetector, resize
from tasks.model.detector import detect
from tests.tasks.export.exports import Exported, small_params

pytestmark = pytest.mark.integration
BLOCKED = ("torch", "torchvision", "detectron2", "detectron_ext", "flows", "tasks", "pyarrow", "mlflow", "pydantic")
_RUN_BLOCKED = f"""
import runpy, sys, zipfile

files = [name.removesuffix(".py").removesuffix("/__init__") for name in zipfile.ZipFile(sys.argv[1]).namelist()]
own = {{name.replace("/", ".") for name in files}}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r} and name not in own:
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_program(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``detect.pyz`` isolated from the environment, with imports of all but its needs and its own files blocked."""
    command = [sys.executable, "-I", "-c", _RUN_BLOCKED, str(folder / PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=120)


def test_signals_are_handled_after_detectors_of_openvino_are_gone(exported: Exported) -> None:
    """The handler of a child that ended runs on the stack that pytest's faulthandler, too, sets up for signals."""
    script = """
import faulthandler, signal, subprocess, sys
from pathlib import Path
from tasks.export.runtime import ExportedDetector

faulthandler.enable()
ended = []
signal.signal(signal.SIGCHLD, lambda *_: ended.append(1))
first, second = (ExportedDetector(Path(sys.argv[1]), 1) for _ in range(2))
del first
del second
subprocess.run(["true"])
print(len(ended) > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported.folder("openvino"))], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 80), st.integers(0, 60))
def test_images_are_resized_as_for_training(height: int, width: int, short_px: int, extra_px: int) -> None:
    pixels = np.random.default_rng(height * 301 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected, _, _ = resize_for_training(pixels, AugmentationConfig(short_px, short_px + extra_px))
    np.testing.assert_array_equal(resize(pixels, short_px, short_px + extra_px), expected)


def test_the_program_finds_what_the_detector_finds(exported: Exported, export_format: Format) -> None:
    path = exported.val_paths[0]
    done = run_program(exported.folder(export_format), "--min-score", "0.05", "--threads", "1", str(path))
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    [expected] = detect(exported.model, [np.asarray(Image.open(path))], exported.params.model, mixed_precision=False)
    expected = expected.filter_by_score(0.05)
    assert document["image"] == str(path)
    assert len(document["objects"]) == len(expected.scores) > 0
    for found, box, score, class_id in zip(
        document["objects"], expected.boxes_xyxy, expected.scores, expected.class_ids, strict=True
    ):
        np.testing.assert_allclose(found["box_xyxy_px"], box, atol=0.05)
        assert found["score"] == pytest.approx(float(score), abs=1e-3)
        assert found["class"] == exported.params.classes[class_id]
        assert sum(found["posteriors"]) == pytest.approx(1, abs=1e-4)


def test_a_large_picture_is_detected_by_the_tiles_of_the_campaign(exported: Exported, tmp_path: Path) -> None:
    """All 300 px of it at once are reduced to a third; the program reads how to cut it from the metadata."""
    pixels = np.random.default_rng(8).integers(0, 256, (210, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    tiled = replace(exported, params=small_params(tile_side_px=96, tile_overlap_frac=0.25))
    write_export(tiled.request("onnx", "fp32"), exported.images, tmp_path / "tiled")

    done = run_program(tmp_path / "tiled", "--min-score", "0.05", str(tmp_path / "large.png"))
    assert done.returncode == 0, done.stderr
    objects = json.loads(done.stdout)["objects"]
    [expected] = detect(exported.model, [pixels], tiled.params.model, mixed_precision=False)
    expected = expected.filter_by_score(0.05)
    [whole] = detect(exported.model, [pixels], exported.params.model, mixed_precision=False)
    assert len(objects) == len(expected.scores) > len(whole.filter_by_score(0.05).scores) > 0
    np.testing.assert_allclose([found["box_xyxy_px"] for found in objects], expected.boxes_xyxy, atol=0.05)
    np.testing.assert_allclose([found["score"] for found in objects], expected.scores, atol=1e-3)


def test_an_unreadable_image_is_named_and_the_others_are_done(exported: Exported, tmp_path: Path) -> None:
    broken, empty = tmp_path / "broken.jpg", tmp_path / "empty.png"
    broken.write_bytes(exported.val_paths[0].read_bytes()[:80])
    empty.write_bytes(b"")
    good = str(exported.val_paths[1])
    done = run_program(exported.folder("onnx"), str(broken), str(empty), str(tmp_path / "missing.png"), good)
    assert done.returncode == 2
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == [good]
    assert [line.partition(": the image is unreadable")[0] for line in done.stderr.splitlines()] == [
        str(broken), str(empty), str(tmp_path / "missing.png"),
    ]  # fmt: skip


def test_bytes_paths_and_pixels_give_the_same(exported: Exported) -> None:
    detector = ExportedDetector(exported.folder("onnx"), num_threads=1)
    path = exported.val_paths[0]
    by_path, by_bytes, by_pixels = (
        detector.detect(image, 0.0) for image in (path, path.read_bytes(), np.asarray(Image.open(path)))
    )
    np.testing.assert_array_equal(by_path.boxes_xyxy_px, by_bytes.boxes_xyxy_px)
    np.testing.assert_array_equal(by_path.boxes_xyxy_px, by_pixels.boxes_xyxy_px)
    limit = float(np.median(by_path.scores))
    assert len(detector.detect(path, limit).scores) == (by_path.scores >= limit).sum()


def test_the_program_has_the_same_bytes_in_every_export(exported: Exported) -> None:
    digests = {file_digests(exported.folder(name))[PROGRAM] for name in ("onnx", "openvino")}
    assert len(digests) == 1


def test_both_sides_are_timed_on_every_image_and_number_of_threads() -> None:
    calls: list[tuple[str, int, bytes]] = []

    def side(name: str) -> Any:
        return lambda threads: lambda image: calls.append((name, threads, image))

    speeds = measure_speed({"a": side("a"), "b": side("b")}, [b"1", b"2", b"3"], [1, 2])
    assert {name: [speed.threads for speed in found] for name, found in speeds.items()} == {"a": [1, 2], "b": [1, 2]}
    for name in ("a", "b"):
        for threads in (1, 2):
            assert [image for *who, image in calls if who == [name, threads]][1:4] == [b"1", b"2", b"3"]
    assert all(speed.p50_ms <= speed.p95_ms for found in speeds.values() for speed in found)
