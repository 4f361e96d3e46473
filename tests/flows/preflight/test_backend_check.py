"""What the doctor says of infer.backend, before a night trains for it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from flows.preflight import machine
from flows.preflight.runner import CheckSkipped
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED
from tasks.runtime.errors import UserError
from tasks.storage import files


def check(root: Path, backend: str, precision: str = "fp32", num_images: int = 0) -> Any:
    workspace = Workspace(root)
    rows = [{"image_id": str(number), "uri": "a.png", "width_px": 8, "height_px": 8} for number in range(num_images)]
    files.write_table(workspace.calibration, pa.Table.from_pylist(rows, ANNOTATED))
    infer = SimpleNamespace(backend=backend, backend_precision=precision)
    context: Any = SimpleNamespace(params=SimpleNamespace(infer=infer), workspace=workspace)
    return machine.check_backend(context)


@pytest.mark.parametrize(
    ("backend", "precision", "missing", "words"),
    [
        ("onnx", "fp32", ["onnxruntime"], "infer.backend is onnx and the package onnxruntime is not installed"),
        ("openvino", "fp32", ["openvino"], "the package openvino is not installed"),
        ("openvino", "int8", [], "int8 and the number of calibration images is 0"),
    ],
)
def test_what_infer_would_end_with_is_told_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, precision: str, missing: list[str], words: str
) -> None:
    monkeypatch.setattr(machine, "missing_packages", lambda names: [name for name in names if name in missing])
    finding = check(tmp_path, backend, precision)
    assert finding.state == "fail"
    assert words in finding.message
    assert finding.fix


def test_what_is_installed_passes_but_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "missing_packages", lambda names: [])
    monkeypatch.setattr(machine, "gpu_devices", lambda: [])
    assert check(tmp_path, "torch").state == "pass"
    assert check(tmp_path, "onnx", "int8", num_images=1).state == "pass"
    monkeypatch.setattr(machine, "gpu_devices", lambda: [Path("/dev/nvidia0")])
    assert check(tmp_path, "onnx").state == "warn"
    assert check(tmp_path, "torch").state == "pass"


def test_broken_parameters_are_another_checks_business() -> None:
    class Broken:
        @property
        def params(self) -> None:
            raise UserError("params.yaml", "seed is -7")

    context: Any = Broken()
    with pytest.raises(CheckSkipped):
        machine.check_backend(context)
