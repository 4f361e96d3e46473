"""Removed channels: which may go, which do, and that what is left computes what the whole model with zeros does."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage

from detectron_ext import pruning
from detectron_ext.config import DetectorSpec
from detectron_ext.meta_arch import PerImageRCNN, build_detector, cpu_state_dict
from detectron_ext.pruning import (
    HiddenChannels,
    channels_to_keep,
    count_multiply_adds,
    count_parameters,
    find_hidden_channels,
    layer_outputs,
    prune,
    rank_channels,
    remove_channels,
    silence_channels,
)
from tests.detectron_ext.tiny import TINY

FC1, FC2 = "roi_heads.box_head.fc1", "roi_heads.box_head.fc2"
RPN = "proposal_generator.rpn_head.conv"
Batches = list[list[dict[str, Any]]]


@pytest.fixture
def batches(example: Callable[..., dict[str, Any]]) -> Batches:
    return [[example(number, [[5, 5, 30, 40]], [number]), example(10 + number)] for number in range(2)]


def random_kept(groups: list[HiddenChannels], fraction: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return channels_to_keep(
        {group.producer: torch.rand(group.num_channels, generator=generator) for group in groups}, fraction
    )


@pytest.mark.parametrize("fraction", [0.3, 0.75])
@pytest.mark.parametrize(
    "spec",
    [
        TINY,
        replace(TINY, backbone="resnet18"),
        replace(TINY, backbone="mobilenetv3_small_100"),  # gated channels
        replace(TINY, config_file="COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"),  # cannot be traced as a whole
    ],
    ids=["efficientnet", "resnet18", "mobilenetv3", "detectron2_r50"],
)
def test_the_smaller_network_is_the_whole_one_with_zeros_for_the_removed_channels(
    spec: DetectorSpec, fraction: float
) -> None:
    torch.manual_seed(0)
    whole = build_detector(spec, "cpu").eval()
    for module in whole.modules():  # new norms let every channel pass as it is, and the last of a block none
        if hasattr(module, "running_var"):
            norm: Any = module
            norm.weight.uniform_(0.5, 1)
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    groups = find_hidden_channels(whole)
    kept = random_kept(groups, fraction)
    smaller, silenced = copy.deepcopy(whole), copy.deepcopy(whole)
    remove_channels(smaller, groups, kept)
    silence_channels(silenced, groups, kept)
    for name, index in kept.items():
        before: Any = whole.get_submodule(name)
        after: Any = smaller.get_submodule(name)
        assert len(after.weight) == len(index) < len(before.weight)
    for own, expected, original in zip(*map(layer_outputs, (smaller, silenced, whole)), strict=True):
        scale = max(float(expected.abs().max()), 1.0)
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-5 * scale)
        assert not torch.allclose(own, original, rtol=0, atol=1e-4)


def test_channels_that_others_depend_on_stay(detector: PerImageRCNN) -> None:
    producers = {group.producer for group in find_hidden_channels(detector)}
    assert {FC1, FC2, RPN} < producers
    blocks = [name for name in producers if ".blocks." in name]
    assert blocks
    assert all(name.endswith("conv_pw") for name in blocks)  # never conv_pwl, which ends in a sum or a pyramid level
    assert not any("fpn" in name for name in producers)


def test_a_block_is_written_out(detector: PerImageRCNN) -> None:
    block = "backbone.bottom_up.body.blocks.1.1"
    [found] = [group for group in find_hidden_channels(detector) if group.producer == f"{block}.conv_pw"]
    assert found == HiddenChannels(
        f"{block}.conv_pw", 144, (f"{block}.conv_dw",), (f"{block}.bn1", f"{block}.bn2"), (f"{block}.conv_pwl",)
    )


def test_a_hook_on_a_layer_keeps_its_channels(detector: PerImageRCNN) -> None:
    detector.get_submodule(FC1).register_forward_hook(lambda *_: None)
    producers = {group.producer for group in find_hidden_channels(detector)}
    assert FC1 not in producers
    assert FC2 in producers


def test_importance_is_the_squared_change_of_the_loss_by_a_gate(detector: PerImageRCNN, batches: Batches) -> None:
    """Against central differences of the loss, with the channel's terms scaled by 1 + step and 1 - step."""
    groups = [group for group in find_hidden_channels(detector) if group.producer in (FC1, FC2)]
    importance = rank_channels(detector, groups, batches, seed=5)
    step = 0.05

    def loss(number: int, group: HiddenChannels, channel: int, factor: float) -> float:
        gated = copy.deepcopy(detector).train()
        with torch.no_grad():
            for name in group.readers:
                weight: Any = gated.get_submodule(name).weight
                weight[:, channel] *= factor
        torch.manual_seed(5 * 1_000_003 + number)
        with EventStorage(0), torch.no_grad():
            return float(gated(batches[number]).total().mean())

    for group in groups:
        channel = int(importance[group.producer].argmax())
        changes = [
            (loss(number, group, channel, 1 + step) - loss(number, group, channel, 1 - step)) / (2 * step)
            for number in range(len(batches))
        ]
        expected = sum(change**2 for change in changes) / len(changes)
        assert float(importance[group.producer][channel]) == pytest.approx(expected, rel=0.1)


def test_the_least_important_channels_go() -> None:
    rising, falling = torch.arange(32.0), torch.arange(48.0, 0, -1)
    kept = channels_to_keep({"a": rising, "b": falling, "too small": torch.zeros(8)}, 0.5)
    assert kept.keys() == {"a", "b"}
    assert kept["a"].tolist() == list(range(16, 32))
    assert kept["b"].tolist() == list(range(24))


@pytest.mark.parametrize(
    ("channels", "fraction", "expected"), [(32, 0.3, 24), (96, 0.3, 64), (144, 0.5, 72), (16, 0.89, 8), (16, 0.1, 16)]
)
def test_what_stays_is_rounded_to_eights(channels: int, fraction: float, expected: int) -> None:
    kept = channels_to_keep({"a": torch.rand(channels)}, fraction)
    assert len(kept.get("a", range(channels))) == expected


def test_counts_are_those_of_the_removed_terms(detector: PerImageRCNN) -> None:
    """32 channels of the pyramid, 32 hidden ones of which 8 stay, on 96 x 128 pixels: 5 levels of stride 4 to 64."""
    groups = find_hidden_channels(detector)
    smaller = copy.deepcopy(detector)
    remove_channels(smaller, groups, {RPN: torch.arange(8)})
    removed, num_anchors = 24, len(TINY.anchor_aspect_ratios)
    per_cell = removed * (9 * 32 + 5 * num_anchors)
    assert count_parameters(detector) - count_parameters(smaller) == per_cell + removed  # and a bias each
    cells = 24 * 32 + 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2
    assert count_multiply_adds(detector, (96, 128)) - count_multiply_adds(smaller, (96, 128)) == cells * per_cell


def test_pruning_leaves_the_model_alone_tells_what_it_did_and_repeats(detector: PerImageRCNN, batches: Batches) -> None:
    before = cpu_state_dict(detector)
    (one, report), (other, _) = (prune(detector, 0.5, batches, (64, 64), seed=1) for _ in range(2))
    after = cpu_state_dict(detector)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(own, same) for own, same in zip(layer_outputs(one), layer_outputs(other), strict=True))
    assert report.layers_pruned == len(find_hidden_channels(detector))
    assert report.layers_left > 0
    assert 0.45 < report.channels_after / report.channels_before < 0.55
    assert report.parameters_after == count_parameters(one) < report.parameters_before == count_parameters(detector)
    assert report.multiply_adds_after < report.multiply_adds_before
    assert all(parameter.requires_grad for parameter in one.parameters())


def test_a_fraction_that_removes_nothing_is_refused(detector: PerImageRCNN, batches: Batches) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        prune(detector, 0.001, batches[:1], (64, 64), seed=1)


def test_a_network_that_computes_something_else_is_refused(
    detector: PerImageRCNN, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "silence_channels", lambda *args: None)
    with pytest.raises(ValueError, match="expected at most rounding"):
        prune(detector, 0.5, batches[:1], (64, 64), seed=1)
