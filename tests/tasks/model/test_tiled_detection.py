"""Large pictures by tiles: what a detector of limited resolution finds, and that tiles off change nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from scipy import ndimage

from detectron_ext.inference import Detections
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.tile_windows import TileConfig, tile_windows
from detectron_ext.tiles import merge
from tasks.model.detector import detect, detect_all, new_detector
from tests.tasks.model.test_detector import model_params

SIDE = 4000
SMALLEST_PX = 8
"""The stub finds nothing smaller, in pixels of its input, as a real detector with anchors of 16 px does."""


class BrightSquareDetector:
    """Finds bright regions of its input; the interface of ``PerImageRCNN`` in eval mode."""

    device = torch.device("cpu")
    backbone = SimpleNamespace(size_divisibility=32)
    roi_heads = SimpleNamespace(describes_regions=False)

    def __init__(self) -> None:
        self.largest_batch = 0

    def __call__(self, inputs: list[dict[str, Any]]) -> list[tuple[Instances, torch.Tensor]]:
        self.largest_batch = max(self.largest_batch, len(inputs))
        return [self._detect(example["image"].numpy()) for example in inputs]

    def _detect(self, image: np.ndarray) -> tuple[Instances, torch.Tensor]:
        components, _ = ndimage.label(image[0] > 127)
        slices = ndimage.find_objects(components)
        boxes = [(x.start, y.start, x.stop, y.stop) for y, x in slices]
        boxes = [box for box in boxes if min(box[2] - box[0], box[3] - box[1]) >= SMALLEST_PX]
        scores = torch.linspace(0.9, 0.6, len(boxes))
        found = Instances(image.shape[1:])
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = scores
        found.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
        found.class_probs = torch.stack([scores, 1 - scores], dim=1)
        return found, torch.full((4,), float(image.mean()))


def made_picture() -> tuple[np.ndarray, np.ndarray]:
    """A dark 4000 x 4000 picture with 150 squares of 20 px and one of 1200 px, none touching another; their boxes."""
    random = np.random.default_rng(4)
    pixels = np.full((SIDE, SIDE, 3), 30, dtype=np.uint8)
    cells = random.permutation(40 * 40)
    boxes = [(2600, 2600, 3800, 3800)]
    for cell in cells:
        left, top = (int(100 * index + random.integers(10, 70)) for index in divmod(int(cell), 40))
        if left + 20 < 2590 or top + 20 < 2590:
            boxes.append((left, top, left + 20, top + 20))
        if len(boxes) == 151:
            break
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 220
    return pixels, np.array(boxes, dtype=np.float32)


def num_found(truth: np.ndarray, found: Detections) -> tuple[int, int]:
    """Objects that one detection each has at IoU 0.5 or more, and detections that are none of these."""
    x1, y1, x2, y2 = (truth[:, i, None] for i in range(4))
    boxes = found.boxes_xyxy
    shared = (np.minimum(x2, boxes[:, 2]) - np.maximum(x1, boxes[:, 0])).clip(min=0) * (
        np.minimum(y2, boxes[:, 3]) - np.maximum(y1, boxes[:, 1])
    ).clip(min=0)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    matches = shared / ((x2 - x1) * (y2 - y1) + areas - shared) >= 0.5
    assert (matches.sum(axis=0) <= 1).all()
    hits = int(matches.any(axis=1).sum())
    return hits, len(boxes) - hits


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tile_side_px": 0}, (1, 0)),  # at a tenth of its size a square of 20 px has 2
        ({"tile_side_px": 500}, (151, 0)),
        ({"tile_side_px": 800, "tile_overlap_frac": 0.1}, (151, 0)),
    ],
)
def test_tiles_find_what_the_whole_picture_misses(changes: dict[str, Any], expected: tuple[int, int]) -> None:
    pixels, truth = made_picture()
    detector = BrightSquareDetector()
    model = model_params(short_side_px=400, long_side_px=400, **{"tile_with_whole": True, **changes})
    arguments: Any = ([detector], [0], lambda _: pixels, model)
    [(_, [found])] = detect_all(*arguments, batch_size=8, mixed_precision=False)
    assert num_found(truth, found) == expected
    assert detector.largest_batch <= 8
    assert found.embedding[0] == pytest.approx(pixels.mean(), abs=1)  # that of the whole picture


def test_without_the_whole_picture_what_is_larger_than_a_tile_is_missed() -> None:
    pixels, truth = made_picture()
    model = model_params(short_side_px=400, long_side_px=400, tile_side_px=500, tile_with_whole=False)
    arguments: Any = ([BrightSquareDetector()], [0], lambda _: pixels, model)
    [(_, [found])] = detect_all(*arguments, batch_size=8, mixed_precision=False)
    assert num_found(truth[1:], found)[0] == 150
    assert num_found(truth[:1], found)[0] == 0


@pytest.fixture(scope="module")
def detector() -> PerImageRCNN:
    torch.manual_seed(0)
    return new_detector(model_params(), 2, 0.0, Path(), "cpu").eval()


def same(one: Detections, other: Detections) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in Detections.__dataclass_fields__)


def test_a_real_detector_sees_tiles_as_pictures_of_their_own(detector: PerImageRCNN) -> None:
    """What comes out is the merge of what it finds on each part, for ``detect`` and ``detect_all`` alike."""
    pixels = np.random.default_rng(1).integers(0, 256, (150, 230, 3), dtype=np.uint8)
    off, tiled = model_params(), model_params(tile_side_px=96, tile_overlap_frac=0.25)
    windows = tile_windows(150, 230, TileConfig(96, 0.25, True))
    assert len(windows) == 1 + 2 * 3

    def expected(batch_size: int) -> Detections:
        batches = [windows[first : first + batch_size] for first in range(0, len(windows), batch_size)]
        parts = [found for batch in batches for found in detect(detector, [w.cut(pixels) for w in batch], off, False)]
        return merge(parts, windows, (150, 230), off.nms_iou_threshold)

    small = pixels[:90, :96]
    alone, by_tiles = detect(detector, [small, pixels], tiled, False)
    assert same(alone, detect(detector, [small], off, False)[0])
    assert len(by_tiles.scores) > off.max_detections_per_image  # that bound holds for each tile
    assert same(by_tiles, expected(4))
    arguments: Any = ([detector, detector], [pixels, small, pixels], np.asarray, tiled)
    results = list(detect_all(*arguments, batch_size=3, mixed_precision=False))
    assert sorted(len(picture) for picture, _ in results) == [90, 150, 150]
    found = [one for picture, by_detector in results if len(picture) == 150 for one in by_detector]
    assert all(same(one, expected(3)) for one in found)


def test_pictures_no_larger_than_a_tile_are_detected_bit_for_bit_as_without_tiles(detector: PerImageRCNN) -> None:
    pictures = [np.random.default_rng(n).integers(0, 256, (80 + n, 120, 3), dtype=np.uint8) for n in range(5)]
    results = []
    for changes in ({}, {"tile_side_px": 120}):
        arguments: Any = ([detector], range(5), lambda n: pictures[n], model_params(**changes))
        found = dict(detect_all(*arguments, batch_size=1, mixed_precision=False))
        results.append([found[n][0] for n in range(5)])
    assert all(same(one, other) for one, other in zip(*results, strict=True))
