"""A norm folded into its convolution changes neither the function nor its gradient nor the checkpoint."""

from copy import deepcopy

import pytest
import timm
import torch
from detectron2.layers import Conv2d as Detectron2Conv2d
from detectron2.layers import FrozenBatchNorm2d
from timm.layers.norm_act import FrozenBatchNormAct2d, freeze_batch_norm_2d
from torch import Tensor, nn

from detectron_ext.backbone import FoldedConv2d, FoldedNorm, fold_frozen_norms
from detectron_ext.meta_arch import build_detector
from tests.detectron_ext.tiny import TINY


def randomize_norms(body: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, buffer in body.named_buffers():
        if name.endswith(("running_var", "weight")):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            buffer.normal_(std=0.3)
    return body


def timm_body(name: str) -> nn.Module:
    body = timm.create_model(name, pretrained=False, features_only=True, out_indices=(0, 1, 2))
    freeze_batch_norm_2d(body)
    return randomize_norms(body)


def output_and_gradients(body: nn.Module, pixels: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    pixels = pixels.clone().requires_grad_()
    maps = body(pixels)
    body.zero_grad()
    torch.stack([(one * torch.linspace(-1, 1, one.shape[-1])).mean() for one in maps]).sum().backward()
    gradients = {name: p.grad for name, p in body.named_parameters() if p.grad is not None}
    return maps, {"pixels": pixels.grad, **gradients}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050"])
@pytest.mark.parametrize("sides", [(64, 96), (45, 70)])
def test_features_gradients_and_names_stay(name: str, sides: tuple[int, int]) -> None:
    plain = timm_body(name).double()  # rounding could put a value on the other side of an activation's bend
    folded = deepcopy(plain)
    norms = [module for module in plain.modules() if "Frozen" in type(module).__name__]
    assert fold_frozen_norms(folded) == len(norms)
    pixels = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(1)).double()
    for trainable in (True, False):  # a frozen depthwise convolution is padded in another way
        plain.requires_grad_(trainable)
        folded.requires_grad_(trainable)
        expected, expected_gradients = output_and_gradients(plain, pixels)
        maps, gradients = output_and_gradients(folded, pixels)
        for one, two in zip(expected, maps, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
        assert list(gradients) == list(expected_gradients)
        for key, gradient in expected_gradients.items():
            torch.testing.assert_close(gradients[key], gradient, rtol=1e-6, atol=1e-12 + 1e-9 * float(gradient.norm()))
    state = folded.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[key], tensor) for key, tensor in plain.state_dict().items())


def test_a_detector_of_this_package_has_no_norm_left_in_its_body() -> None:
    body = build_detector(TINY, "cpu").backbone.bottom_up
    kinds = [type(module) for module in body.modules()]
    assert kinds.count(FoldedConv2d) == kinds.count(FoldedNorm) > 40
    assert FrozenBatchNormAct2d not in kinds


def test_weights_loaded_later_count() -> None:
    plain, other = timm_body("resnet18"), timm_body("resnet18")
    folded = deepcopy(plain)
    fold_frozen_norms(folded)
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    folded.load_state_dict(other.state_dict())
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for one, two in zip(other(pixels), folded(pixels), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_detectron2_convolutions_hold_their_norm() -> None:
    torch.manual_seed(0)
    convolutions = [
        Detectron2Conv2d(3, 4, 3, stride=2, padding=1, bias=False, norm=FrozenBatchNorm2d(4)),
        Detectron2Conv2d(4, 4, 1, bias=True, norm=FrozenBatchNorm2d(4), activation=nn.functional.relu),
        Detectron2Conv2d(4, 4, 1),
    ]
    plain = randomize_norms(nn.Sequential(*convolutions))
    folded = deepcopy(plain)
    assert fold_frozen_norms(folded) == 2
    pixels = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(folded(pixels), plain(pixels), rtol=1e-5, atol=1e-6)
    assert list(folded.state_dict()) == list(plain.state_dict())


class ReadsTwice(nn.Module):
    """The convolution's output goes to the norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), FrozenBatchNormAct2d(3, inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        convolved = self.conv(x)
        return self.norm(convolved) + convolved


class Branches(ReadsTwice):
    """Its way depends on values, so it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else x


def test_what_is_no_plain_pair_stays() -> None:
    assert fold_frozen_norms(ReadsTwice()) == 0
    assert fold_frozen_norms(Branches()) == 0
    watched = nn.Sequential(nn.Conv2d(3, 3, 1), FrozenBatchNormAct2d(3))
    watched[0].register_forward_hook(lambda *_: None)
    assert fold_frozen_norms(watched) == 0
    assert fold_frozen_norms(nn.Sequential(nn.Conv2d(3, 3, 1), FrozenBatchNormAct2d(3))) == 1
