"""Stage infer by ONNX Runtime and OpenVINO: the columns of torch within rounding, and the same picks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import tasks.assemble
import tasks.infer
import tasks.prepare
import tasks.score
import tasks.select
import tasks.train
import tasks.weigh
from detectron_ext.meta_arch import PerImageRCNN
from tasks.data import schemas
from tasks.data.detections import read_shards
from tasks.data.paths import Workspace
from tasks.model.detector import new_detector
from tasks.model.engines import program
from tasks.params.template import render_params
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.conftest import TINY_CLASSES
from tests.tasks import test_detection_stages as stages
from tests.tasks.model.engines.campaign import Campaign, needs_ray

pytestmark = pytest.mark.integration
BACKENDS = ("onnx", "openvino")
Row = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of several sizes, and two detectors of random weights whose scores are spread."""
    stages.write_params(tmp_path)
    model = stages.stage_params(tmp_path).model
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        detector = new_detector(model, len(stages.CLASSES), 0.0, tmp_path, "cpu")
        with torch.no_grad():
            detector.roi_heads.box_predictor.cls_score.weight.mul_(30)
            detector.roi_heads.box_predictor.bbox_pred.weight.mul_(10)
        torch.save(detector.state_dict(), tmp_path / f"{name}.pth")
    images = [stages.save_image(tmp_path, number, size) for number, size in enumerate(stages.SIZES)]
    boxes = {"boxes_xyxy": [10.0, 10.0, 40.0, 50.0], "class_ids": [1], "batch": 0}
    annotated = pa.Table.from_pylist([image | boxes for image in images[5:]], schemas.ANNOTATED)
    files.write_table(tmp_path / "unlabeled.parquet", pa.Table.from_pylist(images[:5], schemas.UNLABELED))
    files.write_table(tmp_path / "annotated.parquet", annotated)
    files.write_table(tmp_path / "labeled.parquet", annotated.slice(1))
    return tmp_path


def rows_by(folder: Path, *settings: str, second: bool = False) -> dict[str, Row]:
    """Run the stage with these settings; return the rows of the pool and of the labeled images."""
    stages.write_params(folder, *settings)
    stages.run_inference(folder, folder / "student.pth" if second else None)
    shards = [*read_shards(folder / "out"), *read_shards(folder / "out", "labeled")]
    return {row["image_id"]: row for shard in shards for row in shard.to_pylist()}


def assert_same_columns(found: dict[str, Row], expected: dict[str, Row]) -> None:
    """Compare every column; the description of a picture is stored with 16 bits, as the posteriors are."""
    assert found.keys() == expected.keys()
    assert sum(len(row["scores"]) for row in expected.values()) > 0
    for image_id, row in expected.items():
        for name, value in row.items():
            own = found[image_id][name]
            if value is None or isinstance(value, str):
                assert own == value, name
                continue
            is_half = name in ("class_probs", "embedding", "region_features")
            np.testing.assert_allclose(own, value, rtol=2e-3 if is_half else 1e-4, atol=2e-3, err_msg=name)


def test_all_columns_are_those_of_torch(folder: Path) -> None:
    """Images of five shapes."""
    expected = rows_by(folder)
    assert_same_columns(rows_by(folder, "infer.backend=openvino"), expected)
    assert not (folder / "scratch").exists()


def test_tiles_and_both_members_of_a_committee_are_those_of_torch(folder: Path) -> None:
    settings = "infer.committee=student", "model.tile_side_px=64"
    expected = rows_by(folder, *settings, second=True)
    assert all(row["box_disagreement"] is not None for row in expected.values())
    assert_same_columns(rows_by(folder, "infer.backend=onnx", *settings, second=True), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_without_detections_has_none(folder: Path, backend: str) -> None:
    """Also where the network has been traced with an image in which it finds nothing."""
    state = torch.load(folder / "teacher.pth")
    state["roi_heads.box_predictor.cls_score.bias"][-1] = 1e3  # everything is background
    torch.save(state, folder / "teacher.pth")
    found = rows_by(folder, f"infer.backend={backend}")
    assert [row["scores"] for row in found.values()] == [[]] * len(found)
    assert [row["residual_mass"] for row in found.values()] == [0.0] * len(found)


def test_int8_takes_its_ranges_from_calibration_images(folder: Path) -> None:
    expected = rows_by(folder)
    found = rows_by(folder, "infer.backend=onnx", "infer.backend_precision=int8")
    assert found.keys() == expected.keys()
    cosines = [np.dot(unit(found[key]["embedding"]), unit(expected[key]["embedding"])) for key in expected]
    assert min(cosines) > 0.9
    best = [(max(found[key]["scores"]), max(expected[key]["scores"])) for key in expected]
    assert any(own != other for own, other in best)
    no_images = files.read_table(folder / "annotated.parquet", schemas.ANNOTATED).slice(0, 0)
    files.write_table(folder / "annotated.parquet", no_images)
    with pytest.raises(UserError, match="the number of images is 0, expected some for int8"):
        stages.run_inference(folder)


def unit(values: list[float]) -> Any:
    return np.array(values) / np.linalg.norm(values)


def test_a_killed_run_goes_on_with_the_program_that_it_has_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.infer, "PIECE_IMAGES", 2)
    rows_by(folder, "infer.backend=onnx")
    expected = stages.read_all(folder)
    written: list[Path] = []
    write_program = tasks.infer.write_program
    monkeypatch.setattr(tasks.infer, "write_program", lambda *args: written.append(args[-1]) or write_program(*args))
    numbers = stages.kill_at_third_piece(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        stages.run_inference(folder)
    stages.run_inference(folder)
    assert numbers == [2, 2, 2, 2, 1, 1]  # the third piece twice; the labeled image is a piece of its own
    assert len(written) == 1
    assert stages.read_all(folder) == expected


def test_finished_work_of_another_backend_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(*settings: str) -> str:
        stages.write_params(folder, *settings)
        return tasks.infer._input_key(stages.stage_params(folder), "digest")

    keys = {key(), key("infer.backend=openvino"), key("infer.backend=onnx")}
    keys |= {key("infer.backend=onnx", "infer.backend_precision=int8")}
    assert len(keys) == 4
    monkeypatch.setattr(program, "installed_versions", lambda names: dict.fromkeys(names, "another"))
    assert key("infer.backend=onnx") not in keys
    assert key() in keys


def test_a_program_that_finds_other_boxes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx = program.write_onnx

    def write_shifted(detector: PerImageRCNN, *args: Any, **settings: Any) -> None:
        weights = detector.proposal_generator.anchor_generator.cell_anchors
        for anchors in weights:
            anchors.add_(3.0)
        write_onnx(detector, *args, **settings)
        for anchors in weights:
            anchors.sub_(3.0)

    monkeypatch.setattr(program, "write_onnx", write_shifted)
    with pytest.raises(UserError, match=r"onnx finds [\d.]+% of torch's boxes on 4 images, expected at least 90%"):
        rows_by(folder, "infer.backend=onnx")


def test_a_detector_that_onnx_cannot_express_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_settings: Any) -> None:
        raise RuntimeError("no operator of that name\nat great length")

    monkeypatch.setattr(program, "write_onnx", fail)
    with pytest.raises(UserError, match=r"ONNX cannot express the detector \(no operator of that name\)"):
        rows_by(folder, "infer.backend=onnx")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_package_is_named_with_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    package = {"onnx": "onnxruntime", "openvino": "openvino"}[backend]
    monkeypatch.setattr(
        "tasks.export.packages.missing_packages", lambda names: [name for name in names if name == package]
    )
    with pytest.raises(UserError, match=rf"the package {package} is not installed.*gleaner\[export\]"):
        rows_by(folder, f"infer.backend={backend}")


def test_a_gpu_is_left_to_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "default_device", lambda: "cuda")
    with pytest.raises(UserError, match="on a machine with a CUDA device, expected torch"):
        rows_by(folder, "infer.backend=onnx")


@needs_ray
def test_actors_of_ray_write_the_same_bytes(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path)
    campaign.run("infer.backend=onnx", "infer.engine=local")
    expected = campaign.outputs()
    done = campaign.run("infer.backend=onnx", "infer.engine=ray", "infer.engine_workers=1")
    assert "infer on Ray" in done.stdout
    assert campaign.outputs() == expected


SETTINGS = (
    *("model.fpn_channels=32", "model.short_side_px=64", "model.long_side_px=96", "model.max_detections_per_image=20"),
    *("train.iterations=60", "train.burn_in_iterations=60", "train.labeled_batch_size=2", "train.num_workers=0"),
    *("budget.amount=2", "infer.score_threshold=0.05", "evaluate.batch_size=2"),
)


@pytest.fixture
def trained(tiny_campaign: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A campaign whose detector was trained for some seconds."""
    write_settings(tiny_campaign)
    monkeypatch.chdir(tiny_campaign.root)
    for stage in (tasks.prepare, tasks.assemble, tasks.train):
        stage._body(tiny_campaign)
    return tiny_campaign


def write_settings(workspace: Workspace, *settings: str) -> None:
    template = (stages.REPOSITORY / "params.yaml").read_text()
    text = render_params(template, classes=TINY_CLASSES, overrides=(*SETTINGS, *settings))
    workspace.params.write_text(text)


def test_a_trained_detector_gives_the_same_picks(trained: Workspace) -> None:
    """All strategies see the same columns; the default one stands for them."""

    def picks(*settings: str) -> tuple[list[str], dict[str, Row]]:
        write_settings(trained, *settings)
        for stage in (tasks.infer, tasks.score, tasks.weigh, tasks.select):
            stage._body(trained)
        path = trained.derived("select") / "selection.parquet"
        rows = {row["image_id"]: row for shard in read_shards(trained.derived("infer")) for row in shard.to_pylist()}
        return files.read_table(path, schemas.SELECTION)["image_id"].to_pylist(), rows

    expected, by_torch = picks()
    assert len(expected) == 2
    for backend in BACKENDS:
        chosen, rows = picks(f"infer.backend={backend}")
        assert chosen == expected
        assert_same_columns(rows, by_torch)
