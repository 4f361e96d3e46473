"""The folder of an export: what is in it, when it is refused, and what a killed call leaves."""

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.export import package
from tasks.export.measure import Accuracy, measure_accuracy, original_detector
from tasks.export.network import NETWORK_FILES
from tasks.export.package import ExportImages, ExportRefusedError, write_export
from tasks.export.packages import Format
from tasks.export.runtime import METADATA_FILE, ExportedDetector, FoundObjects
from tasks.runtime.errors import UserError
from tests.tasks.export.exports import LINEAGE, Exported

pytestmark = pytest.mark.integration


def test_a_folder_holds_network_program_metadata_and_what_was_measured(
    exported: Exported, export_format: Format
) -> None:
    folder = exported.folder(export_format)
    names = {path.name for path in folder.iterdir()}
    assert names == {*NETWORK_FILES[export_format], "detect.pyz", METADATA_FILE, "README.md", "requirements.txt"}
    metadata = json.loads((folder / METADATA_FILE).read_text())
    assert metadata["lineage"] == LINEAGE
    assert metadata["operating_points"] == {"square": {"score_threshold": 0.4}}
    assert metadata["measured"]["accuracy"]["matched_frac"] == 1
    assert metadata["measured"]["accuracy"]["map_original"] == metadata["measured"]["accuracy"]["map_export"]
    assert "torch" not in (folder / "requirements.txt").read_text()
    assert "{{" not in (folder / "README.md").read_text()


@pytest.mark.parametrize("other_format", ["onnx", "openvino"])
def test_int8_is_a_third_of_the_size_and_finds_about_the_same(
    exported: Exported, tmp_path: Path, other_format: Format
) -> None:
    measured = write_export(exported.request(other_format, "int8"), exported.images, tmp_path / "int8")
    assert measured.size_mb < measured.size_original_mb / 2
    detector = ExportedDetector(tmp_path / "int8", 1)
    assert detector.metadata["calibration_inputs"] == 2
    whole = ExportedDetector(exported.folder(other_format), 1)
    for path in exported.val_paths:
        one, other = whole.detect(path, 0.0), detector.detect(path, 0.0)
        assert abs(one.scores.max() - other.scores.max()) < 0.2


def test_int8_without_calibration_images_is_refused(exported: Exported, tmp_path: Path) -> None:
    images = ExportImages(exported.images.root, exported.images.calibration.slice(0, 0), exported.images.val)
    with pytest.raises(UserError, match="number of images is 0"):
        write_export(exported.request("onnx", "int8"), images, tmp_path / "int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("loss", "is_refused"), [(0.9, False), (1.0, False), (1.1, True)])
def test_a_loss_of_map_beyond_the_tolerance_is_refused_and_leaves_nothing(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float, is_refused: bool
) -> None:
    monkeypatch.setattr(package, "measure_accuracy", lambda *args: Accuracy(40.0, 40.0 - loss, 0.9, 0.9, 3))
    request = exported.request("onnx", "fp32", tolerance_points=1.0)
    if is_refused:
        with pytest.raises(ExportRefusedError, match=r"38\.90 against 40\.00") as refused:
            write_export(request, exported.images, tmp_path / "export")
        assert refused.value.exit_code == 1
        assert list(tmp_path.iterdir()) == []
    else:
        write_export(request, exported.images, tmp_path / "export")
        assert (tmp_path / "export" / METADATA_FILE).is_file()


def test_a_call_that_was_killed_is_repeated_whole(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = tmp_path / ".export.1234.tmp"
    draft.mkdir()
    (draft / "leftover.onnx").write_text("half a network")
    with monkeypatch.context() as patched:
        patched.setattr(package, "_write_texts", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_export(exported.request("onnx", "fp32"), exported.images, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    write_export(exported.request("onnx", "fp32"), exported.images, tmp_path / "export")
    assert {path.name for path in (tmp_path / "export").iterdir()} == {
        path.name for path in exported.folder("onnx").iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_agreement_counts_boxes_of_the_same_class_by_their_overlap(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against an export that finds each box a fifth of its width to the right, and calls every second one otherwise."""
    original = original_detector(exported.model, exported.params)

    class Shifted:
        def detect(self, path: Path, min_score: float) -> FoundObjects:
            found = original(path).filter_by_score(min_score)
            boxes = found.boxes_xyxy.copy()
            boxes[:, [0, 2]] += 0.2 * (boxes[:, 2] - boxes[:, 0])[:, None]
            class_ids = np.where(np.arange(len(boxes)) % 2 == 0, found.class_ids, found.class_ids + 7)
            return FoundObjects(boxes, found.scores, class_ids, found.class_probs)

    accuracy = measure_accuracy(
        original,
        Shifted(),
        exported.images.val,
        exported.params,
        exported.images.root,  # type: ignore[arg-type]
    )
    assert accuracy.matched_frac == 0
    assert 0.2 < accuracy.mean_iou < 0.8  # a shift alone gives 0.8 / 1.2; other boxes of the class may lie nearer
    assert accuracy.num_images == 3
