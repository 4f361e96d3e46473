"""Views and batches: boxes follow the pixels, every image gets its turn, an iteration always sees the same."""

import io
import multiprocessing
import os
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from detectron_ext.augmentation import AugmentationConfig, Example, resize, strong_augment, weak_augment
from detectron_ext.data import SemiSupervisedBatches

AUGMENTATION = AugmentationConfig(short_side_px=32, long_side_px=64, flip_probability=0.5, scale_jitter_frac=0.2)


def make_image(uri: str) -> np.ndarray:
    """A dark 40 x 60 picture with one bright box whose place follows from the name."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    left = int(uri)
    pixels[10:30, left : left + 12] = 255
    return pixels


def make_example(left: int, labeled: bool = True) -> Example:
    boxes = np.array([[left, 10, left + 12, 30]] if labeled else [], dtype=np.float32).reshape(-1, 4)
    return Example(f"{left:016d}", str(left), boxes, np.zeros(len(boxes), dtype=np.int64))


def make_batches(seed: int = 5, burn_in: int = 2, sampling_weights: np.ndarray | None = None) -> SemiSupervisedBatches:
    labeled = [make_example(left) for left in (1, 10, 20)]
    unlabeled = [make_example(left, labeled=False) for left in range(30, 37)]
    return SemiSupervisedBatches(
        labeled, unlabeled, make_image, AUGMENTATION, batch_sizes=(2, 3), burn_in_iterations=burn_in, seed=seed,
        sampling_weights=sampling_weights,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_the_pixels(seed: int) -> None:
    example = make_example(5)
    pixels, boxes = weak_augment(make_image("5"), example, AUGMENTATION, np.random.default_rng(seed))
    x1, y1, x2, y2 = boxes[0]
    rows, columns = np.nonzero(pixels[:, :, 0] > 127)
    assert abs(columns.min() - x1) <= 1
    assert abs(columns.max() + 1 - x2) <= 1
    assert abs(rows.min() - y1) <= 1
    assert abs(rows.max() + 1 - y2) <= 1


def test_the_strong_view_keeps_the_geometry() -> None:
    pixels = make_image("5")
    for seed in range(10):
        assert strong_augment(pixels, AUGMENTATION, np.random.default_rng(seed)).shape == pixels.shape


def test_resize_respects_both_sides() -> None:
    resized, factor_x, factor_y = resize(np.zeros((100, 400, 3), dtype=np.uint8), AUGMENTATION)
    assert resized.shape == (16, 64, 3)
    assert (factor_x, factor_y) == (0.16, 0.16)


def test_unlabeled_images_are_drawn_by_their_weights() -> None:
    weighted = make_batches(sampling_weights=np.array([0, 0, 1.0, 0, 0, 0, 0]))
    third = make_example(32, labeled=False).image_id
    assert {image_id for i in range(2, 6) for image_id in weighted[i].unlabeled_ids} == {third}
    for one, two in zip(make_batches()[3].labeled, weighted[3].labeled, strict=True):
        assert torch.equal(one["image"], two["image"])


def test_a_random_subset_of_the_unlabeled_images_is_always_the_same() -> None:
    ids = [example.image_id for example in make_batches().random_unlabeled(6)]
    assert len(set(ids)) == 6
    assert ids == [example.image_id for example in make_batches().random_unlabeled(6)]
    assert len(make_batches().random_unlabeled(100)) == 7


def test_unlabeled_batches_cover_the_whole_pool() -> None:
    seen = Counter(image_id for i in range(2, 2 + 14) for image_id in make_batches()[i].unlabeled_ids)
    assert len(seen) == 7
    assert set(seen.values()) == {6}


def test_burn_in_sees_labels_only() -> None:
    assert make_batches()[1].unlabeled_ids == []
    assert len(make_batches()[2].unlabeled_ids) == 3


def test_an_iteration_is_the_same_whenever_it_is_asked_for() -> None:
    first, again, other = make_batches()[3], make_batches()[3], make_batches()[4]
    for one, two in zip(first.labeled + first.unlabeled_strong, again.labeled + again.unlabeled_strong, strict=True):
        torch.testing.assert_close(one["image"], two["image"])
    assert first.unlabeled_ids != other.unlabeled_ids


def test_starting_late_gives_the_same_batches() -> None:
    whole = list(make_batches().iterate(0, 5, num_workers=0))
    late = list(make_batches().iterate(3, 5, num_workers=0))
    assert [batch.unlabeled_ids for batch in whole[3:]] == [batch.unlabeled_ids for batch in late]
    torch.testing.assert_close(whole[3].labeled[0]["image"], late[0].labeled[0]["image"])


def test_pixels_go_as_bytes() -> None:
    batch = make_batches()[3]
    for example in batch.labeled + batch.unlabeled_weak + batch.unlabeled_strong:
        assert example["image"].dtype == torch.uint8


def test_spawned_workers_read_what_this_process_reads() -> None:
    """Processes are not forked on every platform, and not at all by Python 3.14's default."""
    batches = make_batches()
    batches[3]  # the sampler has been used
    context = multiprocessing.get_context("spawn")
    loader = DataLoader(batches, batch_size=None, sampler=[3], num_workers=1, multiprocessing_context=context)
    [read] = list(loader)
    for one, two in zip(
        read.labeled + read.unlabeled_strong, batches[3].labeled + batches[3].unlabeled_strong, strict=True
    ):
        assert torch.equal(one["image"], two["image"])


def test_no_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match="labeled images are 0"):
        SemiSupervisedBatches([], [], make_image, AUGMENTATION, batch_sizes=(1, 1), burn_in_iterations=0, seed=0)


def test_processes_share_every_batch_and_see_the_same_views() -> None:
    labeled = [make_example(left) for left in (1, 10, 20)]
    unlabeled = [make_example(left, labeled=False) for left in range(30, 37)]

    def made(rank: int, world_size: int) -> SemiSupervisedBatches:
        sizes = {"batch_sizes": (2, 4), "burn_in_iterations": 0, "seed": 5}
        return SemiSupervisedBatches(
            labeled, unlabeled, make_image, AUGMENTATION, rank=rank, world_size=world_size, **sizes
        )

    whole, first, second = made(0, 1)[3], made(0, 2)[3], made(1, 2)[3]
    assert whole.unlabeled_ids[0::2] == first.unlabeled_ids
    assert whole.unlabeled_ids[1::2] == second.unlabeled_ids
    for alone, shared in zip(whole.labeled, first.labeled + second.labeled, strict=True):
        assert torch.equal(alone["image"], shared["image"])
    for alone, shared in zip(whole.unlabeled_strong[1::2], second.unlabeled_strong, strict=True):
        assert torch.equal(alone["image"], shared["image"])


def test_a_batch_that_does_not_divide_among_the_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="labeled images per step are 3, expected a multiple of the 2 devices"):
        SemiSupervisedBatches(
            [make_example(1)],
            [],
            make_image,
            AUGMENTATION,
            batch_sizes=(3, 2),
            burn_in_iterations=0,
            seed=1,
            rank=0,
            world_size=2,
        )


def test_workers_end_when_the_loop_ends_early() -> None:
    with closing(make_batches().iterate(0, 5, num_workers=1)) as read_ahead:
        next(read_ahead)
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


class BrokenStream(io.StringIO):
    """A standard output whose flush fails: the last step of a process, which then ends with exit code 1."""

    def flush(self) -> None:
        raise OSError("the stream is broken")


def fail_to_read(_uri: str) -> NDArray[np.uint8]:
    """Fail, in a worker that fails again at its end; a child keeps the pipe open that would tell of a quiet end."""
    sys.stdout = BrokenStream()
    if not os.fork():
        time.sleep(2)
        os._exit(0)
    raise RuntimeError("the image is gone")


def test_a_worker_that_fails_at_its_end_does_not_hide_why_reading_failed() -> None:
    batches = SemiSupervisedBatches(
        [make_example(1)], [], fail_to_read, AUGMENTATION, batch_sizes=(1, 0), burn_in_iterations=5, seed=1
    )
    with pytest.raises(RuntimeError, match="the image is gone"):
        list(batches.iterate(0, 5, num_workers=1))
    assert not multiprocessing.active_children()


LARGE = {"tile_side_px": 16, "tile_probability": 1.0}


def batches_of(paste_rare_frac: float = 0.0, **changes: float) -> SemiSupervisedBatches:
    labeled = [make_example(left) for left in (1, 10, 20)]
    unlabeled = [make_example(left, labeled=False) for left in range(30, 37)]
    return SemiSupervisedBatches(
        labeled, unlabeled, make_image, replace(AUGMENTATION, **changes), batch_sizes=(2, 3), burn_in_iterations=2,
        seed=5, paste_rare_frac=paste_rare_frac,
    )  # fmt: skip


def test_views_of_tiles_show_an_object_large_and_its_box_follows() -> None:
    """A tile of 16 px becomes 32 to 38 px, so the object of 12 px is twice as large as in views of whole images."""
    heights = []
    for step in range(6):
        batch = batches_of(**LARGE)[step]
        for view in batch.labeled:
            instances = view["instances"]
            assert view["image"].shape[1] == view["image"].shape[2]  # a square tile
            box = instances.gt_boxes.tensor[instances.gt_classes == 0][0]
            heights.append(float(box[2] - box[0]))
        assert all(view["image"].shape == weak["image"].shape for view, weak in zip(
            batch.unlabeled_strong, batch.unlabeled_weak, strict=True))  # fmt: skip
    assert min(heights) > 1.5 * 12 * 32 / 40


def test_without_tiles_no_random_number_is_drawn_for_them() -> None:
    for changes in ({"tile_probability": 1.0}, {"tile_side_px": 60, "tile_probability": 0.0}):
        one, other = batches_of(paste_rare_frac=0.5), batches_of(paste_rare_frac=0.5, **changes)
        if not changes.get("tile_side_px"):
            for step in range(5):
                for mine, theirs in zip(one[step].labeled, other[step].labeled, strict=True):
                    assert torch.equal(mine["image"], theirs["image"])
                assert one[step].unlabeled_ids == other[step].unlabeled_ids
        assert other[3].unlabeled_weak[0]["image"].shape[2] > other[3].unlabeled_weak[0]["image"].shape[1]  # 60 x 40


def test_pasted_objects_have_the_size_they_have_in_tiles() -> None:
    def largest_side(**changes: float) -> int:
        batches = batches_of(paste_rare_frac=1.0, **changes)
        return max(max(p.pixels.shape[1:]) for step in range(2, 9) for ps in batches[step].patches for p in ps)

    assert largest_side(tile_side_px=24, tile_probability=1.0) > 1.3 * largest_side()
