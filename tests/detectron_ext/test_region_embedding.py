"""Regions are described by a second pass of the box head over what was detected."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detectron_ext.augmentation import AugmentationConfig
from detectron_ext.embeddings import REGION_DIM, describe_regions, projection, sum_by_class
from detectron_ext.inference import detect, prepare_image
from detectron_ext.meta_arch import build_detector
from tests.detectron_ext.tiny import TINY


def instances(boxes: list[list[float]], size: tuple[int, int] = (100, 100)) -> Instances:
    found = Instances(size)
    found.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    return found


def iou(first: Tensor, second: Tensor) -> float:
    x1, y1 = torch.maximum(first[:2], second[:2])
    x2, y2 = torch.minimum(first[2:], second[2:])
    both = float((x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0))
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (first, second)]
    return both / (sum(areas) - both)


def test_stability_is_the_overlap_with_the_refined_box_inside_the_image() -> None:
    images = [instances([[10, 10, 30, 30], [90, 90, 100, 100]]), instances([]), instances([[0, 0, 20, 10]])]
    refined = torch.tensor([[12.0, 10, 32, 30], [90, 90, 130, 130], [0, 0, 20, 10]])
    describe_regions(images, torch.ones(3, 5), refined, projection(5))
    expected = iou(images[0].pred_boxes.tensor[0], refined[0])
    assert images[0].stability.tolist() == pytest.approx([expected, 1.0])
    assert [len(image.region_features) for image in images] == [2, 0, 1]
    assert images[2].stability.tolist() == pytest.approx([1.0])


def test_projection_keeps_distances_roughly_and_never_changes() -> None:
    features = torch.randn(40, 256, generator=torch.Generator().manual_seed(3))
    before, after = torch.cdist(features, features), torch.cdist(features @ projection(256), features @ projection(256))
    off_diagonal = ~torch.eye(40, dtype=torch.bool)
    assert float((after / before)[off_diagonal].std()) < 0.15
    assert float((after / before)[off_diagonal].mean()) == pytest.approx(1, abs=0.05)
    assert projection(256)[0, :2].tolist() == pytest.approx(projection(256)[0, :2].tolist())


def test_features_are_summed_by_class_with_the_scores() -> None:
    features = np.array([[1, 0], [0, 1], [2, 2]], dtype=np.float32)
    classes, sums = sum_by_class(features, np.array([0.5, 1, 0.25], dtype=np.float32), np.array([4, 1, 4]))
    assert classes.tolist() == [1, 4]
    np.testing.assert_allclose(sums, [[0, 1], [0.5 + 0.5, 0.5]])
    empty_classes, empty_sums = sum_by_class(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, int))
    assert (len(empty_classes), empty_sums.shape) == (0, (0, 2))


def test_a_detector_describes_regions_only_when_asked_and_with_the_same_detections() -> None:
    torch.manual_seed(1)
    model = build_detector(TINY, "cpu").eval()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    images = [
        prepare_image(pixels, AugmentationConfig(64, 96)),
        prepare_image(pixels[:, ::-1], AugmentationConfig(64, 96)),
    ]
    plain = detect(model, images, False)
    model.roi_heads.describes_regions = True
    described = detect(model, images, False)
    for before, after in zip(plain, described, strict=True):
        assert len(before.stability) == 0
        assert len(after.scores) > 0
        np.testing.assert_array_equal(before.boxes_xyxy, after.boxes_xyxy)
        assert after.region_features.shape == (len(after.scores), REGION_DIM)
        assert ((after.stability >= 0) & (after.stability <= 1)).all()
        assert len(after.filter_by_score(2).stability) == 0
        assert len(before.filter_by_score(0).stability) == 0
