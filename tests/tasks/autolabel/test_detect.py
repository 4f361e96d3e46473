"""A model other than that of the stored detections is run by the code of the stage ``infer``, as a process."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image

from tasks.data import schemas
from tasks.data.detections import read_detections
from tasks.data.paths import Workspace, image_id_from_sha256
from tasks.model.detector import new_detector
from tasks.params import load_params
from tasks.params.template import render_params
from tasks.storage import files

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[3]
SETTINGS = (
    "model.pretrained_weights=none",
    "model.fpn_channels=32",
    "model.short_side_px=64",
    "model.long_side_px=96",
    "infer.score_threshold=0.0",
)


def test_a_process_detects_with_the_model_it_is_given(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    template = (REPOSITORY / "params.yaml").read_text()
    workspace.params.write_text(render_params(template, classes=("disc", "square"), overrides=SETTINGS))
    model = load_params(workspace.params).model
    teacher = tmp_path / "champion.pth"
    torch.save(new_detector(model, 2, 0.0, tmp_path, "cpu").state_dict(), teacher)
    rows = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (96, 64), (number * 80, 90, 120)).save(path)
        image_id = image_id_from_sha256(files.sha256_file(path))
        rows.append({"image_id": image_id, "uri": path.name, "width_px": 96, "height_px": 64})
    assembled = workspace.derived("assemble")
    files.write_table(assembled / "unlabeled.parquet", pa.Table.from_pylist(rows[:1], schemas.UNLABELED))
    boxes = {"boxes_xyxy": [1.0, 1.0, 20.0, 20.0], "class_ids": [0], "batch": 0}
    for name, row in (("calibration", rows[1]), ("labeled", rows[2])):
        files.write_table(assembled / f"{name}.parquet", pa.Table.from_pylist([row | boxes], schemas.ANNOTATED))
    out = tmp_path / ".gleaner" / "autolabel" / "x" / "infer"
    command = [sys.executable, "-m", "tasks.autolabel.detect", str(teacher), str(workspace.params), str(out)]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = list(read_detections(out))
    assert {one.image_id for one in found} == {row["image_id"] for row in rows[:2]}
    assert sorted(path.name for path in out.iterdir()) == ["labeled-000000.parquet", "shard-000000.parquet"]
    assert [path.name for path in out.parent.iterdir()] == ["infer"]
