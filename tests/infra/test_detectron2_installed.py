"""The Detectron2 that is installed, ours or the site's own, does what Gleaner needs of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.events import EventStorage
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from infra.detectron2.install import installed_version
from infra.detectron2.patches import VERSION


@pytest.fixture(scope="module")
def tiny_cfg() -> Any:
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return cfg


def test_faster_rcnn_trains_and_predicts(tiny_cfg: Any) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    truth = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]])), gt_classes=torch.tensor([1]))
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)

    with EventStorage():
        losses = model.train()([{"image": image, "instances": truth}])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    with torch.no_grad():
        found = model.eval()([{"image": image, "height": 128, "width": 128}])[0]["instances"]
    assert found.image_size == (128, 128)
    assert len(found) > 0
    assert found.pred_boxes.tensor.max() > 64  # boxes are in the size asked for


def test_image_is_read_turned_and_mapped(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 80, 3), np.uint8)).save(tmp_path / "image.png")
    box = {"bbox": [8, 8, 40, 40], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    record = {"file_name": str(tmp_path / "image.png"), "height": 64, "width": 80, "annotations": [box]}
    augmentations = [T.RandomExtent((0.9, 1.0), (0.0, 0.0)), T.RandomFlip(prob=1.0), T.ResizeShortestEdge(32)]
    mapped = DatasetMapper(is_train=True, augmentations=augmentations, image_format="BGR")(record)
    assert min(mapped["image"].shape[1:]) == 32
    assert mapped["instances"].gt_classes.tolist() == [1]


def test_coco_evaluator_scores_a_perfect_prediction(tmp_path: Path) -> None:
    truth = {
        "info": {},
        "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 32, 32], "area": 1024, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    name = "gleaner_test_detectron2_wheel"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        json_file=str(tmp_path / "truth.json"),
        thing_classes=["thing"],
        thing_dataset_id_to_contiguous_id={1: 0},
    )
    try:
        evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=False, output_dir=None)
        evaluator.reset()
        found = Instances((64, 64), scores=torch.tensor([0.9]), pred_classes=torch.tensor([0]))
        found.pred_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
        evaluator.process([{"image_id": 1}], [{"instances": found}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100.0)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_visualizer_draws() -> None:
    found = Instances((64, 64), scores=torch.tensor([0.9]), pred_classes=torch.tensor([0]))
    found.pred_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    drawn = Visualizer(np.zeros((64, 64, 3), np.uint8)).draw_instance_predictions(found).get_image()
    assert drawn.shape == (64, 64, 3)
    assert drawn.any()


@pytest.mark.skipif(installed_version() != VERSION, reason="the site's own build has it")
def test_missing_extension_is_named() -> None:
    from detectron2 import _C

    with pytest.raises(AttributeError, match=r"nms_rotated is not in this build of Detectron2"):
        _C.nms_rotated  # noqa: B018
    assert "no C++ extension" in collect_env_info()


def test_detectron2_imports_without_pkg_resources() -> None:
    code = "import sys; sys.modules['pkg_resources'] = None; import detectron2.model_zoo"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
