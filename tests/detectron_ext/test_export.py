"""The traced graph finds what the detector finds, on images of any size."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import nn

from detectron_ext.backbone import FoldedConv2d, FoldedNorm
from detectron_ext.export import INPUT_NAME, OUTPUT_NAMES, FixedConv2d, SingleImageDetector, write_onnx
from detectron_ext.inference import PreparedImage, detect
from detectron_ext.meta_arch import PerImageRCNN, cpu_state_dict

SIZES_PX = [(64, 64), (64, 96), (97, 64), (33, 95), (160, 224), (130, 65)]


def random_image(size_px: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(sum(size_px)).integers(0, 256, (*size_px, 3), dtype=np.uint8)


def detected(model: PerImageRCNN, image: np.ndarray) -> list[np.ndarray]:
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    [found] = detect(model, [PreparedImage({"image": pixels}, *image.shape[:2])], mixed_precision=False)
    return [found.boxes_xyxy, found.scores, found.class_ids, found.class_probs]


@pytest.fixture
def trained(detector: PerImageRCNN) -> PerImageRCNN:
    """Random weights whose scores are spread, so that the order of detections is clear."""
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.weight.mul_(30)
        detector.roi_heads.box_predictor.bbox_pred.weight.mul_(10)
    return detector.eval()


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_the_graph_without_containers_is_the_detector(trained: PerImageRCNN, size_px: tuple[int, int]) -> None:
    image = random_image(size_px)
    with torch.inference_mode():
        outputs = SingleImageDetector(trained)(torch.from_numpy(image))
    for own, expected in zip(outputs, detected(trained, image), strict=True):
        np.testing.assert_allclose(own.numpy(), expected, atol=1e-4)


def test_one_file_serves_images_of_any_size_and_leaves_the_model_alone(trained: PerImageRCNN, tmp_path: Path) -> None:
    before = cpu_state_dict(trained)
    write_onnx(trained, tmp_path / "network.onnx")
    after = cpu_state_dict(trained)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", options, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == list(OUTPUT_NAMES)
    num_found = 0
    for size_px in SIZES_PX:
        image = random_image(size_px)
        for own, expected in zip(session.run(None, {INPUT_NAME: image}), detected(trained, image), strict=True):
            np.testing.assert_allclose(own, expected, atol=1e-3)
            num_found += len(expected)
    assert num_found > 0


def test_blue_first_models_get_their_channels_in_order(trained: PerImageRCNN) -> None:
    image = random_image((64, 96))
    trained.input_format = "BGR"
    with torch.inference_mode():
        boxes, *_ = SingleImageDetector(trained)(torch.from_numpy(image))
    np.testing.assert_allclose(boxes.numpy(), detected(trained, image)[0], atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pads_same", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_fixed_kernel_gives_what_the_folded_convolution_gives(
    kernel: int, stride: int, pads_same: bool, depthwise: bool
) -> None:
    torch.manual_seed(kernel * 10 + stride)
    groups = 8 if depthwise else 1
    kind = Conv2dSame if pads_same else nn.Conv2d
    conv = kind(8, 8, kernel, stride=stride, padding=0 if pads_same else kernel // 2, groups=groups, bias=False)
    norm = FrozenBatchNormAct2d(8)
    for buffer in (norm.weight, norm.bias, norm.running_mean):
        buffer.normal_()
    norm.running_var.uniform_(0.5, 2)
    folded = FoldedConv2d(conv, FoldedNorm(norm), None).requires_grad_(False)
    image = torch.randn(1, 8, 24, 16)
    torch.testing.assert_close(FixedConv2d(folded)(image), folded(image), atol=1e-5, rtol=1e-4)
