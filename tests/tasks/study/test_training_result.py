from pathlib import Path

import pyarrow as pa
import pytest

from tasks.data.annotations import AnnotatedImage, write_annotated
from tasks.data.paths import Workspace
from tasks.data.schemas import PREDICTIONS, Box
from tasks.storage import files
from tasks.study.training_result import measure_training, point_bootstrap, point_map

TRAININGS = [
    {"teacher": {"map": 30.0, "bootstrap_map": [28.0, 33.0]}, "student": {"map": 34.0, "bootstrap_map": [35.0, 31.0]}},
    {"teacher": {"map": 40.0, "bootstrap_map": [40.0, 44.0]}, "student": {"map": 20.0, "bootstrap_map": [20.0, 22.0]}},
]


def test_a_point_is_the_mean_over_trainings_of_the_better_model() -> None:
    assert point_map(TRAININGS, "best") == pytest.approx((34 + 40) / 2)
    assert point_map(TRAININGS, "teacher") == pytest.approx((30 + 40) / 2)
    assert point_map(TRAININGS, "student") == pytest.approx((34 + 20) / 2)


def test_resamples_of_the_images_go_through_the_same_rule() -> None:
    assert point_bootstrap(TRAININGS, "best") == pytest.approx([(35 + 40) / 2, (33 + 44) / 2])
    assert point_bootstrap(TRAININGS[:1], "teacher") == [28.0, 33.0]


def test_a_training_keeps_the_ap_of_each_class(tmp_path: Path) -> None:
    """Of two classes one has an object, found exactly; its AP is 100 on each resample."""
    workspace = Workspace(tmp_path)
    image = AnnotatedImage("i", "i.png", 64, 64, (Box(category="cell", xyxy_px=(1, 2, 30, 40)),), -1)
    write_annotated(workspace.derived("assemble") / "val.parquet", [image], ["cell", "plate"])
    found = [
        {"model": name, "image_id": "i", "boxes_xyxy": [1.0, 2.0, 30.0, 40.0], "scores": [0.9], "class_ids": [0]}
        for name in ("teacher", "student")
    ]
    files.write_table(workspace.derived("evaluate") / "predictions.parquet", pa.Table.from_pylist(found, PREDICTIONS))
    metrics = {"mAP": 100.0, "AP50": 100.0, "per_class": {"cell": 100.0, "plate": None}}
    files.write_json(workspace.derived("evaluate") / "metrics.json", {name: metrics for name in ("teacher", "student")})
    measured = measure_training(workspace, ["cell", "plate"])
    for name in ("teacher", "student"):
        assert measured[name]["ap_by_class"] == {"cell": 100.0, "plate": None}
        assert measured[name]["bootstrap_map"] == [100.0] * 300
