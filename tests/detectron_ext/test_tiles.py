"""Tiles cover a picture with the wanted overlap, and what they find is merged by hand-counted rules."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectron_ext.augmentation import Example
from detectron_ext.inference import Detections
from detectron_ext.losses import CROWD_LABEL
from detectron_ext.objectness_doubt import ObjectnessDoubt
from detectron_ext.tile_windows import TileConfig, Window, tile_windows
from detectron_ext.tiles import detect_windows, merge, random_tile, tile_with_object

SIZE = (100, 160)
LEFT, RIGHT = Window(0, 0, 100, 100), Window(60, 0, 160, 100)
WHOLE = Window(0, 0, 160, 100)


def found(*boxes: tuple[float, float, float, float, float, int], embedding: float = 0.0) -> Detections:
    """Detections from x1, y1, x2, y2, score, class; the posteriors hold the score twice, so that rows can be traced."""
    rows = np.array(boxes, dtype=np.float32).reshape(-1, 6)
    probs = np.stack([rows[:, 4], rows[:, 4] / 2, 1 - 1.5 * rows[:, 4]], axis=1)
    return Detections(
        rows[:, :4],
        rows[:, 4],
        rows[:, 5].astype(np.int64),
        probs,
        np.full(2, embedding, dtype=np.float32),
        rows[:, 4] / 4,
        rows[:, 4:5] * np.ones((1, 3), dtype=np.float32),
    )


def boxes_of(merged: Detections) -> list[tuple[float, ...]]:
    return [
        (*box, round(score, 3)) for box, score in zip(merged.boxes_xyxy.tolist(), merged.scores.tolist(), strict=True)
    ]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(64, 900), st.floats(0, 0.75), st.booleans())
def test_tiles_cover_the_picture_and_overlap(
    height: int, width: int, side: int, overlap: float, with_whole: bool
) -> None:
    windows = tile_windows(height, width, TileConfig(side, overlap, with_whole))
    if max(height, width) <= side:
        assert windows == []
        return
    if with_whole:
        assert windows.pop(0) == Window(0, 0, width, height)
    for length, spans in (
        (width, sorted({(window.left, window.right) for window in windows})),
        (height, sorted({(window.top, window.bottom) for window in windows})),
    ):
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert all(end - start == min(side, length) for start, end in spans)
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= overlap * side - 1  # whole pixels
        # No more tiles than the overlap needs.
        assert len(spans) <= max(np.ceil((length - side) / (side * (1 - overlap)) - 1e-9), 0) + 1
    columns, rows = (len({getattr(window, edge) for window in windows}) for edge in ("left", "top"))
    assert len(windows) == columns * rows


def test_without_a_side_nothing_is_cut() -> None:
    assert tile_windows(4000, 4000, TileConfig(0, 0.25, True)) == []
    assert len(tile_windows(4000, 4000, TileConfig(512, 0.25, False))) == 11 * 11  # 1 + ceil(3488 / 384)


def test_boxes_are_moved_to_the_picture_and_the_better_of_two_alike_stays_with_all_it_has() -> None:
    in_left = found((70, 20, 90, 40, 0.6, 1), (5, 5, 15, 15, 0.3, 0))
    in_right = found((11, 21, 31, 41, 0.8, 1), (60, 60, 80, 80, 0.5, 0))
    merged = merge([in_left, in_right], [LEFT, RIGHT], SIZE, 0.5)
    assert boxes_of(merged) == [(71, 21, 91, 41, 0.8), (120, 60, 140, 80, 0.5), (5, 5, 15, 15, 0.3)]
    assert merged.class_ids.tolist() == [1, 0, 0]
    np.testing.assert_allclose(merged.class_probs[:, 0], [0.8, 0.5, 0.3])
    np.testing.assert_allclose(merged.stability, [0.2, 0.125, 0.075])
    np.testing.assert_allclose(merged.region_features[:, 2], [0.8, 0.5, 0.3])


def test_alike_boxes_of_two_classes_both_stay() -> None:
    merged = merge([found((70, 20, 90, 40, 0.6, 1)), found((10, 20, 30, 40, 0.8, 0))], [LEFT, RIGHT], SIZE, 0.5)
    assert sorted(merged.class_ids.tolist()) == [0, 1]


def test_a_piece_of_an_object_gives_way_to_the_whole_object_even_with_a_higher_score() -> None:
    piece = found((80, 20, 99, 60, 0.9, 0))  # the tile's right border, inside of the picture
    whole = found((20, 20, 70, 60, 0.4, 0))  # IoU 19 / 50
    assert boxes_of(merge([piece, whole], [LEFT, RIGHT], SIZE, 0.5)) == [(80, 20, 130, 60, 0.4)]
    at_the_edge = found((0, 20, 19, 60, 0.9, 0))  # the picture ends there as well: no piece
    assert len(merge([at_the_edge, whole], [LEFT, RIGHT], SIZE, 0.5).scores) == 2
    of_another_class = found((80, 20, 99, 60, 0.9, 1))
    assert len(merge([of_another_class, whole], [LEFT, RIGHT], SIZE, 0.5).scores) == 2


def test_pieces_of_one_part_do_not_remove_each_other_by_their_share() -> None:
    two = found((60, 20, 99, 60, 0.9, 0), (90, 20, 99, 30, 0.4, 0))  # the second lies in the first; IoU 0.06
    assert len(merge([two, found()], [LEFT, RIGHT], SIZE, 0.5).scores) == 2


def test_an_object_larger_than_a_tile_is_found_by_the_whole_picture_alone() -> None:
    parts = [found((10, 10, 150, 90, 0.7, 0)), found((10, 10, 99.5, 90, 0.9, 0)), found((0, 10, 90, 90, 0.8, 0))]
    assert boxes_of(merge(parts, [WHOLE, LEFT, RIGHT], SIZE, 0.5)) == [(10, 10, 150, 90, 0.7)]


def test_doubt_is_the_largest_of_any_part_and_its_map_the_whole_pictures() -> None:
    parts = [replace(found(), doubt=ObjectnessDoubt(mean, np.full((16, 16), 100 * mean))) for mean in (0.25, 0.75, 0.5)]
    merged = merge(parts, [WHOLE, LEFT, RIGHT], SIZE, 0.5).doubt
    assert merged is not None
    assert merged.top_mean == 0.75
    assert merged.map_percent is parts[0].doubt.map_percent
    tiles_only = merge(parts[1:], [LEFT, RIGHT], SIZE, 0.5).doubt
    assert tiles_only == ObjectnessDoubt(0.75, None)
    assert merge([found()], [WHOLE], SIZE, 0.5).doubt is None


def test_the_embedding_is_the_whole_pictures_or_the_mean_of_the_tiles() -> None:
    parts = [found(embedding=1.0), found(embedding=4.0), found(embedding=6.0)]
    assert merge(parts, [WHOLE, LEFT, RIGHT], SIZE, 0.5).embedding.tolist() == [1, 1]
    merged = merge(parts[1:], [LEFT, RIGHT], SIZE, 0.5)
    assert merged.embedding.tolist() == [5, 5]
    assert (merged.boxes_xyxy.shape, merged.class_probs.shape, len(merged.scores)) == ((0, 4), (0, 3), 0)


corners = st.tuples(*[st.integers(0, 99)] * 4, st.integers(1, 64), st.integers(0, 1)).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]) + 1, max(v[1], v[3]) + 1, v[4] / 64, v[5])
)


@given(st.lists(corners, max_size=12), st.lists(corners, max_size=12))
def test_what_stays_has_no_twin_and_what_goes_has_a_reason(one: list[tuple], other: list[tuple]) -> None:  # type: ignore[type-arg]
    parts = [found(*one), found(*other)]
    merged = merge(parts, [LEFT, RIGHT], SIZE, 0.5)
    assert merged.scores.tolist() == sorted(merged.scores.tolist(), reverse=True)
    for i, box in enumerate(merged.boxes_xyxy):
        for j, twin in enumerate(merged.boxes_xyxy):
            if i < j and merged.class_ids[i] == merged.class_ids[j]:
                sides = np.minimum(box[2:], twin[2:]) - np.maximum(box[:2], twin[:2])
                shared = float(sides.clip(min=0).prod())
                areas = [float((b[2:] - b[:2]).prod()) for b in (box, twin)]
                assert shared / (sum(areas) - shared) <= 0.5 + 1e-5
    # The best box of a class that touches no inner border always stays.
    for class_id in (0, 1):
        free = [b for b in one if b[5] == class_id and b[2] < 98 and b[3] < 98]
        free += [b for b in other if b[5] == class_id and b[0] > 2]
        if free:
            best = max(b[4] for b in free)
            assert np.isclose(merged.scores[merged.class_ids == class_id], best).any()


def test_parts_are_detected_in_bounded_batches() -> None:
    pixels = np.arange(300 * 300 * 3, dtype=np.uint32).astype(np.uint8).reshape(300, 300, 3)
    windows = tile_windows(300, 300, TileConfig(100, 0.0, True))
    sizes: list[int] = []

    def detect(parts: Sequence[np.ndarray]) -> list[list[Detections]]:  # type: ignore[type-arg]
        sizes.append(len(parts))
        assert all(part.base is not None for part in parts)  # views, no copies
        return [[found((10, 10, 30, 30, 0.5, 0)), found()] for _ in parts]

    first, second = detect_windows(pixels, windows, detect, batch_size=4, nms_iou_threshold=0.5)
    assert sizes == [4, 4, 2]
    assert (len(first.scores), len(second.scores)) == (9, 0)  # the whole picture's box is that of the first tile


def example(*boxes: tuple[float, float, float, float], classes: Sequence[int] | None = None) -> Example:
    class_ids = np.array(classes if classes is not None else [0] * len(boxes), dtype=np.int64)
    return Example("a", "a.png", np.array(boxes, dtype=np.float32).reshape(-1, 4), class_ids)


@given(st.integers(0, 10**6), st.integers(100, 400), st.integers(100, 400))
def test_a_random_tile_holds_an_object_and_its_labels_fit_its_pixels(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    boxes = []
    for number in range(1, 6):
        left, top = int(rng.integers(0, width - 12)), int(rng.integers(0, height - 12))
        boxes.append((left, top, left + 12, top + 12))
        pixels[top : top + 12, left : left + 12] = number
    tile, seen = random_tile(pixels, example(*boxes, classes=[0, 1, 2, 0, CROWD_LABEL]), 96, rng)
    assert tile.shape[:2] == (min(height, 96), min(width, 96))
    assert ((seen.boxes_xyxy >= 0) & (seen.boxes_xyxy[:, [2, 3, 2, 3]] <= np.array(tile.shape)[[1, 0, 1, 0]])).all()
    sides = seen.boxes_xyxy[:, 2:] - seen.boxes_xyxy[:, :2]
    is_object = seen.class_ids != CROWD_LABEL
    assert (sides[is_object] == 12).all(axis=1).any()  # one whole object at least
    assert (sides[is_object].prod(axis=1) >= 72).all()
    last = np.array(boxes[4])
    for x1, y1, x2, y2 in seen.boxes_xyxy[is_object].astype(int).tolist():
        assert tile[y1:y2, x1:x2].any(), last


def test_an_object_that_is_mostly_outside_becomes_an_ignored_region() -> None:
    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    drawn = example((100, 10, 190, 90), (70, 10, 120, 50), (0, 0, 20, 20), (60, 50, 140, 90), classes=[1, 2, 0, 1])
    # The first box spans 90 of the tile's 100 px: its left edge is at 90 to 100.
    rng = np.random.default_rng(3)
    tile, seen = tile_with_object(pixels, drawn, 0, 100, rng)
    assert tile.shape == (100, 100, 3)
    assert len(seen.boxes_xyxy) == 4  # numbers stay
    assert (seen.boxes_xyxy[0, 2:] - seen.boxes_xyxy[0, :2]).tolist() == [90, 80]
    only = example((100, 10, 190, 90))
    for seed in range(20):
        _, alone = random_tile(pixels, only, 100, np.random.default_rng(seed))
        assert (alone.boxes_xyxy[0, 2] - alone.boxes_xyxy[0, 0], alone.class_ids.tolist()) == (90, [0])
    labels = [random_tile(pixels, drawn, 100, np.random.default_rng(seed))[1] for seed in range(200)]
    cut = [
        (float(box[2] - box[0]), int(class_id))
        for one in labels
        for box, class_id in zip(one.boxes_xyxy, one.class_ids, strict=True)
        if box[1] == 10 and box[3] == 50
    ]
    assert {class_id for width, class_id in cut if width >= 25} == {2}
    assert {class_id for width, class_id in cut if width < 25} == {CROWD_LABEL}


@pytest.mark.parametrize("boxes", [(), ((10, 10, 290, 290),)])
def test_any_picture_has_a_tile(boxes: tuple[tuple[float, float, float, float], ...]) -> None:
    tiles = set()
    for seed in range(30):
        pixels = np.add.outer(np.arange(300), np.arange(300))[..., None].repeat(3, axis=2).astype(np.uint8)
        tile, seen = random_tile(pixels, example(*boxes), 64, np.random.default_rng(seed))
        assert tile.shape == (64, 64, 3)
        assert len(seen.boxes_xyxy) == len(boxes)
        tiles.add(tile.tobytes())
    assert len(tiles) > 20 if not boxes else len(tiles) > 10
    small = np.zeros((60, 64, 3), dtype=np.uint8)
    one = example(*boxes)
    same, unchanged = random_tile(small, one, 64, np.random.default_rng(0))
    assert same is small
    assert unchanged is one
