"""A tiny detector of random weights, exported once in each format."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tasks.data.schemas import ANNOTATED
from tasks.export.package import ExportImages, write_export
from tasks.model.detector import new_detector
from tests.tasks.export.exports import CLASSES, Exported, small_params


def _rows(root: Path, names: list[str]) -> pa.Table:
    rows = []
    for number, name in enumerate(names):
        size_px = 60 + 7 * number, 90 - 5 * number
        pixels = np.random.default_rng(number + len(name)).integers(0, 256, (*size_px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")
        row = {
            "image_id": name, "uri": f"{name}.png", "width_px": size_px[1], "height_px": size_px[0],
            "boxes_xyxy": [5.0, 5.0, 40.0, 45.0], "class_ids": [number % 2], "is_crowd": [False],
        }  # fmt: skip
        rows.append({field.name: row.get(field.name) for field in ANNOTATED})
    return pa.Table.from_pylist(rows, ANNOTATED)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Real exports in fp32; nobody changes them."""
    root = tmp_path_factory.mktemp("exports")
    params = small_params()
    torch.manual_seed(0)
    model = new_detector(params.model, len(CLASSES), 1.5, root, "cpu").eval()
    with torch.no_grad():  # spread scores: the order of detections must not hang on rounding
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
    val, calibration = _rows(root, ["val0", "val1", "val2"]), _rows(root, ["calibration0", "calibration1"])
    images = ExportImages(root, calibration, val)
    whole = Exported(model, params, images, [root / uri for uri in val["uri"].to_pylist()], root)
    for export_format in ("onnx", "openvino"):
        write_export(whole.request(export_format, "fp32"), images, whole.folder(export_format))
    return whole


@pytest.fixture(params=["onnx", "openvino"])
def export_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)
