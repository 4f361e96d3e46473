"""The real heads: per-image losses that agree with Detectron2's own, posteriors that survive NMS."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from torch import Tensor

from detectron_ext.config import build_cfg
from detectron_ext.embeddings import EMBEDDING_DIM
from detectron_ext.losses import DetectionLosses
from detectron_ext.meta_arch import PerImageRCNN, build_detector, cpu_state_dict, load_weights
from tests.detectron_ext.tiny import NUM_CLASSES, TINY

Example = Callable[..., dict[str, Any]]


def compute_losses(model: PerImageRCNN, inputs: list[dict[str, Any]], seed: int = 1) -> DetectionLosses:
    torch.manual_seed(seed)
    with EventStorage():
        return model.train()(inputs)


@pytest.fixture
def inputs(example: Example) -> list[dict[str, Any]]:
    return [
        example(1, [[5, 5, 25, 25], [30, 30, 60, 50]], [0, 2]),
        example(2, [[10, 20, 40, 60]], [1]),
        example(3),  # a person found nothing here
    ]


def test_rpn_losses_average_to_the_stock_loss(
    detector: PerImageRCNN, inputs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = compute_losses(detector, inputs)
    monkeypatch.setattr(type(detector.proposal_generator), "losses", RPN.losses)
    stock: dict[str, Tensor] = {}
    original = RPN.forward

    def recording(self: RPN, *args: Any) -> Any:
        proposals, losses = original(self, *args)
        stock.update(losses)
        return proposals, losses

    monkeypatch.setattr(RPN, "forward", recording)
    compute_losses(detector, inputs)
    torch.testing.assert_close(own.objectness_N.mean(), stock["loss_rpn_cls"])
    torch.testing.assert_close(own.rpn_boxes_N.mean(), stock["loss_rpn_loc"])


def test_roi_losses_average_to_the_stock_loss(inputs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    detector = build_detector(replace(TINY, focal_gamma=0.0), "cpu")  # gamma 0 is Detectron2's cross entropy
    sizes: list[int] = []
    stock: dict[str, Tensor] = {}
    predictor = type(detector.roi_heads.box_predictor)
    original = predictor.losses

    def both(self: FastRCNNOutputLayers, predictions: Any, proposals: Any) -> Any:
        sizes.extend(len(image) for image in proposals)
        stock.update(FastRCNNOutputLayers.losses(self, predictions, proposals))
        return original(self, predictions, proposals)

    monkeypatch.setattr(predictor, "losses", both)
    own = compute_losses(detector, inputs)
    roi_fraction = torch.tensor(sizes) / sum(sizes)  # stock averages over ROIs, ours over each image's ROIs
    torch.testing.assert_close((own.classes_N * roi_fraction).sum(), stock["loss_cls"])
    torch.testing.assert_close((own.roi_boxes_N * roi_fraction).sum(), stock["loss_box_reg"])


def test_an_empty_image_has_background_terms_only(detector: PerImageRCNN, inputs: list[dict[str, Any]]) -> None:
    losses = compute_losses(detector, inputs)
    assert losses.rpn_boxes_N[2] == 0
    assert losses.roi_boxes_N[2] == 0
    assert losses.objectness_N[2] > 0
    assert losses.classes_N[2] > 0
    assert torch.isfinite(losses.total()).all()


def compute_gradient(detector: PerImageRCNN, inputs: list[dict[str, Any]], weight_N: Tensor) -> Tensor:
    detector.zero_grad()
    (weight_N * compute_losses(detector, inputs).total()).mean().backward()
    return torch.cat([p.grad.flatten() for p in detector.parameters() if p.grad is not None])


def test_weight_zero_gives_zero_gradient_and_doubling_doubles_it(
    detector: PerImageRCNN, inputs: list[dict[str, Any]]
) -> None:
    zero = compute_gradient(detector, inputs, torch.zeros(3))
    first = compute_gradient(detector, inputs, torch.tensor([1.0, 0.0, 0.0]))
    twice = compute_gradient(detector, inputs, torch.tensor([2.0, 0.0, 0.0]))
    third = compute_gradient(detector, inputs, torch.tensor([0.0, 0.0, 1.0]))
    both = compute_gradient(detector, inputs, torch.tensor([1.0, 0.0, 1.0]))
    assert zero.abs().max() == 0
    assert first.abs().max() > 0
    torch.testing.assert_close(twice, 2 * first, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(both, first + third, rtol=1e-3, atol=1e-6)


def test_posteriors_survive_nms(detector: PerImageRCNN, inputs: list[dict[str, Any]]) -> None:
    with torch.no_grad():
        outputs = detector.eval()(inputs)
    assert len(outputs) == 3
    total = 0
    for instances, embedding in outputs:
        posteriors = instances.class_probs
        total += len(instances)
        assert posteriors.shape == (len(instances), NUM_CLASSES + 1)
        torch.testing.assert_close(posteriors.sum(dim=1), torch.ones(len(instances)))
        best, label = posteriors[:, :-1].max(dim=1)
        torch.testing.assert_close(instances.scores, best)
        assert (instances.pred_classes == label).all()
        assert (instances.scores.diff() <= 0).all()
        assert embedding.shape == (EMBEDDING_DIM,)
    assert total > 0


@pytest.fixture
def mixed_shapes() -> list[dict[str, Any]]:
    """Landscape, portrait and square, in uint8 as the loaders give them."""
    rng = np.random.default_rng(5)
    sides = [(64, 96), (96, 64), (64, 96), (60, 90), (40, 40)]
    return [{"image": torch.from_numpy(rng.integers(0, 256, (3, *side), dtype=np.uint8))} for side in sides]


def test_an_image_gives_the_same_result_in_any_batch(
    detector: PerImageRCNN, mixed_shapes: list[dict[str, Any]]
) -> None:
    detector.eval()
    with torch.no_grad():
        together = detector(mixed_shapes)
        for image, (found, embedding) in zip(mixed_shapes, together, strict=True):
            [(alone, embedding_alone)] = detector([image])
            assert len(alone) == len(found) > 0
            assert found.image_size == tuple(image["image"].shape[1:])
            torch.testing.assert_close(embedding, embedding_alone, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.scores, alone.scores, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.class_probs, alone.class_probs, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.pred_boxes.tensor, alone.pred_boxes.tensor, rtol=1e-4, atol=1e-2)


def test_images_of_one_padded_shape_share_a_forward_pass(
    detector: PerImageRCNN, mixed_shapes: list[dict[str, Any]]
) -> None:
    batch_sizes: list[int] = []
    detector.eval().backbone.register_forward_hook(lambda _module, inputs, _output: batch_sizes.append(len(inputs[0])))
    with torch.no_grad():
        detector(mixed_shapes)
    assert batch_sizes == [3, 1, 1]  # 60 x 90 is padded to 64 x 96


def test_bytes_and_floats_are_the_same_image(detector: PerImageRCNN, mixed_shapes: list[dict[str, Any]]) -> None:
    floats = [{"image": image["image"].float()} for image in mixed_shapes]
    for one, two in zip(detector.preprocess_image(mixed_shapes), detector.preprocess_image(floats), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("section", ["RPN", "ROI_BOX_HEAD"])
def test_a_box_loss_that_is_not_computed_is_refused(section: str) -> None:
    """Else a YAML with giou would train smooth L1 without a word."""
    cfg = build_cfg(TINY, "cpu")
    cfg.MODEL[section].BBOX_REG_LOSS_TYPE = "giou"
    with pytest.raises(ValueError, match=rf"{section}\.BBOX_REG_LOSS_TYPE is 'giou', expected 'smooth_l1'"):
        build_model(cfg)


def test_non_finite_outputs_never_become_detections(detector: PerImageRCNN, inputs: list[dict[str, Any]]) -> None:
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.bias.fill_(float("nan"))
        outputs = detector.eval()(inputs)
    assert [len(instances) for instances, _ in outputs] == [0, 0, 0]


def test_class_weights_reach_the_loss(detector: PerImageRCNN, inputs: list[dict[str, Any]]) -> None:
    plain = compute_losses(detector, inputs)
    detector.set_class_weights(torch.tensor([1.0, 5.0, 1.0]), torch.ones(3))
    weighted = compute_losses(detector, inputs)
    torch.testing.assert_close(weighted.classes_N[[0, 2]], plain.classes_N[[0, 2]])
    assert weighted.classes_N[1] > plain.classes_N[1]
    detector.set_class_weights(torch.ones(3), torch.full((3,), 5.0))
    claims = compute_losses(detector, inputs)  # every region claims some class at random weights
    assert (claims.classes_N > plain.classes_N).all()
    assert not [name for name in cpu_state_dict(detector) if "weight_K" in name]


def test_weights_of_another_model_are_refused(detector: PerImageRCNN) -> None:
    other = build_detector(replace(TINY, num_classes=NUM_CLASSES + 1), "cpu")
    with pytest.raises(ValueError, match="weights do not fit"):
        load_weights(other, cpu_state_dict(detector))
