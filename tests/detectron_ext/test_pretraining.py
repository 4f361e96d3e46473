"""Pretraining of the backbone: the loss against its formula written out, regions of two views, and guard rails."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from detectron_ext.augmentation import AugmentationConfig, Example
from detectron_ext.meta_arch import PerImageRCNN, build_detector
from detectron_ext.pretraining import BackbonePretrainer, PretrainingSchedule
from detectron_ext.pretraining_views import PretrainingBatch, PretrainingBatches, ViewWindow, draw_regions, draw_window
from detectron_ext.trainer import TrainingDiverged
from detectron_ext.vicreg import embedding_spread, vicreg
from tests.detectron_ext.tiny import TINY

SCHEDULE = PretrainingSchedule(
    iterations=3, learning_rate=1e-3, backbone_lr_factor=1.0, weight_decay=1e-4, grad_clip_norm=5.0
)
NO_LABELS = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
VIEWS = AugmentationConfig(64, 96, flip_probability=0.5, strong_magnitude=0.7)


def written_out_vicreg(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Equations 1 to 5 of the paper with loops, and with the means of the authors' code."""
    num_regions, num_dims = first.shape
    invariance = sum((first[r, d] - second[r, d]) ** 2 for r in range(num_regions) for d in range(num_dims))
    variance = covariance = 0.0
    for one in (first, second):
        mean = [sum(one[:, d]) / num_regions for d in range(num_dims)]
        for d in range(num_dims):
            for other in range(num_dims):
                products = [(one[r, d] - mean[d]) * (one[r, other] - mean[other]) for r in range(num_regions)]
                found = sum(products) / (num_regions - 1)
                if d == other:
                    variance += max(0.0, 1 - (found + 1e-4) ** 0.5) / num_dims / 2
                else:
                    covariance += found**2 / num_dims
    return invariance / (num_regions * num_dims), variance, covariance


def test_the_loss_is_the_formula_written_out() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0, [0.3, 0.9, 1.5], (5, 3))
    second = first + rng.normal(0, 0.4, (5, 3))
    terms = vicreg(torch.from_numpy(first), torch.from_numpy(second))
    expected = written_out_vicreg(first, second)
    assert [float(term) for term in terms] == pytest.approx(expected, rel=1e-5)
    assert float(terms.total) == pytest.approx(25 * expected[0] + 25 * expected[1] + expected[2], rel=1e-5)


def test_equal_embeddings_cost_the_whole_variance_term_and_have_no_spread() -> None:
    constant = torch.full((6, 4), 0.7)
    terms = vicreg(constant, constant)
    assert [float(term) for term in terms] == pytest.approx([0, 0.99, 0], abs=1e-6)
    assert float(embedding_spread(constant)) == pytest.approx(0, abs=1e-6)


def test_the_spread_of_even_directions_is_one() -> None:
    generator = torch.Generator().manual_seed(0)
    assert float(embedding_spread(torch.randn(2000, 64, generator=generator))) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("size_px", [(1, 1), (2, 3), (5, 40), (300, 200)])
def test_regions_lie_in_both_views_whatever_the_size_of_the_image(size_px: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        windows = [draw_window(size_px, 0.5, rng) for _ in range(2)]
        regions = draw_regions(size_px, *windows, rng)
        assert (regions[:, 2:] > regions[:, :2]).all()
        for window in windows:
            left, top, right, bottom = window.xyxy
            assert min(left, top) >= 0
            assert bottom <= size_px[0]
            assert right <= size_px[1]
            assert (regions[:, :2] >= np.array([left, top]) - 1e-9).all()
            assert (regions[:, 2:] <= np.array([right, bottom]) + 1e-9).all()


def test_a_box_is_placed_in_a_flipped_and_resized_view() -> None:
    box = np.array([[30.0, 40.0, 50.0, 45.0]])
    plain, flipped = (ViewWindow(10, 20, 80, 60, is_flipped) for is_flipped in (False, True))
    assert plain.place(box, 2.0, 3.0).tolist() == [[40, 60, 80, 75]]
    assert flipped.place(box, 2.0, 3.0).tolist() == [[80, 60, 120, 75]]  # the view is 160 wide


def scene(uri: str) -> np.ndarray:
    """Return a picture whose red grows to the right and green downward: colors say where a pixel is from."""
    height, width = (60, 90) if uri.endswith("0") else (90, 60)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return pixels


def images(count: int) -> list[Example]:
    return [Example(f"{i}", f"{i}", *NO_LABELS) for i in range(count)]


def test_a_region_shows_the_same_place_in_both_views() -> None:
    """Without changes of color, the mean color of a region tells where it is from."""
    views = AugmentationConfig(64, 96, flip_probability=0.5, strong_magnitude=0.0)
    batch = PretrainingBatches(images(4), scene, views, batch_size=4, seed=1)[0]
    for first, second in zip(batch.first, batch.second, strict=True):
        means = np.array([[mean_color(view, box) for box in view["regions"].tolist()] for view in (first, second)])
        assert np.abs(means[0] - means[1]).max() < 12


def mean_color(view: dict[str, Any], box: list[float]) -> np.ndarray:
    left, top, right, bottom = (round(side) for side in box)
    part = view["image"][:2, top : max(bottom, top + 1), left : max(right, left + 1)]
    return part.float().mean(dim=(1, 2)).numpy()


def test_processes_make_their_shares_of_the_same_batch() -> None:
    def of_rank(rank: int, world_size: int) -> list[torch.Tensor]:
        batches = PretrainingBatches(images(5), scene, VIEWS, batch_size=4, seed=1, rank=rank, world_size=world_size)
        return [view["image"] for view in batches[3].first]

    whole, shares = of_rank(0, 1), [of_rank(rank, 2) for rank in range(2)]
    for slot, image in enumerate(whole):
        assert torch.equal(image, shares[slot % 2][slot // 2])


@pytest.fixture(scope="module")
def untrained() -> PerImageRCNN:
    torch.manual_seed(0)
    return build_detector(TINY, "cpu")


@pytest.fixture
def pretrainer(untrained: PerImageRCNN) -> Callable[[], BackbonePretrainer]:
    """Makes one of a detector of its own, which starts as the others."""
    return lambda: BackbonePretrainer(deepcopy(untrained), SCHEDULE, mixed_precision=True, seed=3)


@pytest.fixture(scope="module")
def batch_at() -> Callable[[int], PretrainingBatch]:
    batches = PretrainingBatches(images(3), scene, VIEWS, batch_size=2, seed=1)
    return batches.__getitem__


@pytest.mark.integration
def test_steps_change_body_and_pyramid_alone_and_a_resumed_run_repeats_them(
    pretrainer: Callable[[], BackbonePretrainer], batch_at: Callable[[int], PretrainingBatch]
) -> None:
    whole = pretrainer()
    start = {name: tensor.clone() for name, tensor in whole.detector.state_dict().items()}
    logs = [whole.step(batch_at(number)) for number in range(3)]
    changed = {name for name, tensor in whole.detector.state_dict().items() if not torch.equal(tensor, start[name])}
    assert {name.split(".")[1] for name in changed} >= {"bottom_up", "fpn_lateral2"}
    assert all(name.startswith("backbone.") for name in changed)
    trained = {name for name, parameter in whole.detector.named_parameters() if parameter.requires_grad}
    assert changed <= trained  # frozen stages stay

    killed = pretrainer()
    killed.step(batch_at(0))
    resumed = pretrainer()
    resumed.load_state_dict(killed.state_dict())
    assert [resumed.step(batch_at(number)) for number in (1, 2)] == logs[1:]
    for name, tensor in whole.detector.state_dict().items():
        assert torch.equal(tensor, resumed.detector.state_dict()[name]), name
    assert set(whole.state_dict()) == {"iteration", "backbone"}  # of a finished run no optimizer is kept


@pytest.mark.integration
def test_micro_batches_have_the_gradient_of_the_whole(pretrainer: Callable[[], BackbonePretrainer]) -> None:
    same_shape = [Example(uri, uri, *NO_LABELS) for uri in ("0", "10", "20")]
    plain = AugmentationConfig(64, 96, strong_magnitude=0.7)
    batch = PretrainingBatches(same_shape, scene, plain, batch_size=3, seed=1)[0]
    runs = [pretrainer(), pretrainer()]
    runs[1].num_micro_batches = 3
    logs = [run.step(batch) for run in runs]
    assert list(vars(logs[0]).values()) == pytest.approx(list(vars(logs[1]).values()), rel=1e-4)
    whole, parts = (run.expander[0].weight.grad for run in runs)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-5)
    whole, parts = (run.detector.backbone.fpn_lateral2.weight.grad for run in runs)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-4)


@pytest.mark.integration
def test_a_step_that_is_not_finite_changes_nothing(
    pretrainer: Callable[[], BackbonePretrainer], batch_at: Callable[[int], PretrainingBatch]
) -> None:
    run = pretrainer()
    with torch.no_grad():
        run.expander[0].weight[0, 0] = torch.inf
    before = {name: tensor.clone() for name, tensor in run.detector.state_dict().items()}
    with pytest.raises(TrainingDiverged, match=r"loss is nan at iteration 0 of pretraining, expected a finite number"):
        run.step(batch_at(0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.detector.state_dict().items())


@pytest.mark.integration
def test_collapse_is_found(
    pretrainer: Callable[[], BackbonePretrainer], batch_at: Callable[[int], PretrainingBatch]
) -> None:
    """An expander that answers its bias to everything, after some steps in which it did."""
    run = pretrainer()
    with torch.no_grad():
        run.expander[-1].weight.zero_()
    run.spread = 0.051
    with pytest.raises(TrainingDiverged, match=r"spread of the normalized embeddings is 0\.0459 at iteration 0"):
        run.step(batch_at(0))


@pytest.mark.integration
def test_a_frozen_backbone_is_refused(untrained: PerImageRCNN) -> None:
    student = deepcopy(untrained)
    student.backbone.bottom_up.requires_grad_(False)
    with pytest.raises(ValueError, match="all stages of the backbone are frozen"):
        BackbonePretrainer(student, SCHEDULE, mixed_precision=False, seed=0)
