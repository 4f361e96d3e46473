"""The teacher through MLflow's own loader, on a real detector with random weights."""

import io
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

import tasks
from tasks.model.detector import detect, load_detector, new_detector
from tasks.params import load_params
from tasks.params.template import render_params
from tasks.storage import files

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[3]
CLASSES = ("disc", "square")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    overrides = [
        "model.pretrained_weights=none",
        "model.fpn_channels=32",
        "model.short_side_px=64",
        "model.long_side_px=96",
    ]
    text = render_params((REPOSITORY / "params.yaml").read_text(), classes=CLASSES, overrides=overrides)
    files.write_bytes(folder / "params.yaml", text.encode())
    torch.manual_seed(0)
    model = load_params(folder / "params.yaml").model
    torch.save(new_detector(model, len(CLASSES), 0.0, folder, "cpu").state_dict(), folder / "teacher.pth")
    return folder


@pytest.fixture(scope="module")
def served(saved: Path) -> mlflow.pyfunc.PyFuncModel:
    mlflow.pyfunc.save_model(
        saved / "model",
        python_model=str(Path(tasks.__file__).parent / "model" / "pyfunc_model.py"),
        artifacts={name: str(saved / file) for name, file in (("teacher", "teacher.pth"), ("params", "params.yaml"))},
        pip_requirements=["gleaner"],
    )
    return mlflow.pyfunc.load_model(str(saved / "model"))


def make_image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, size=(48, 64, 3)).astype(np.uint8)


def test_bytes_path_and_array_of_one_picture_give_the_same_boxes(
    served: mlflow.pyfunc.PyFuncModel, saved: Path
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(make_image()).save(buffer, "PNG")
    (saved / "picture.png").write_bytes(buffer.getvalue())
    results = served.predict([buffer.getvalue(), str(saved / "picture.png"), make_image()])
    assert results[0] == results[1] == results[2]
    assert len(results[0]["classes"]) == len(results[0]["scores"]) == len(results[0]["boxes_xyxy_px"]) > 0


def test_boxes_are_those_of_the_detector_with_names(served: mlflow.pyfunc.PyFuncModel, saved: Path) -> None:
    params = load_params(saved / "params.yaml")
    detector = load_detector(params.model, len(CLASSES), saved / "teacher.pth")
    found = detect(detector, [make_image()], params.model, True)[0]
    result = served.predict([make_image()])[0]
    np.testing.assert_allclose(result["boxes_xyxy_px"], found.boxes_xyxy, rtol=1e-5)
    assert result["classes"] == [CLASSES[label] for label in found.class_ids]
    assert result["scores"] == sorted(result["scores"], reverse=True)


def test_an_array_that_is_no_rgb_picture_is_refused(served: mlflow.pyfunc.PyFuncModel) -> None:
    with pytest.raises(ValueError, match=r"float64 \(48, 64\), expected uint8 \(H, W, 3\)"):
        served.predict([np.zeros((48, 64))])
