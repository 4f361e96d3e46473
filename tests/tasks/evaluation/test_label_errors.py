"""Labels that detections contradict: written-out cases, and planted errors among noisy detections."""

import numpy as np
import pytest

from tasks.evaluation.label_errors import LabelError, find_label_errors

HERE, MOVED, THERE = [0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [50.0, 50.0, 60.0, 60.0]  # HERE, MOVED: IoU 1/3


def errors(
    found: list[tuple[list[float], float, int]], labels: list[tuple[list[float], int]]
) -> list[tuple[str, float, int]]:
    listed: list[LabelError] = find_label_errors(
        np.array([box for box, _, _ in found], dtype=np.float64).reshape(-1, 4),
        np.array([score for _, score, _ in found], dtype=np.float64),
        np.array([class_id for _, _, class_id in found], dtype=np.int64),
        np.array([box for box, _ in labels], dtype=np.float64).reshape(-1, 4),
        np.array([class_id for _, class_id in labels], dtype=np.int64),
    )
    return [(one.kind, round(one.strength, 4), one.class_id) for one in listed if one.strength > 0]


def test_a_detection_without_any_label_there_is_a_missing_one() -> None:
    assert errors([(HERE, 0.9, 0), (THERE, 0.8, 1)], [(HERE, 0)]) == [("missing", 0.8, 1)]
    assert errors([(HERE, 0.9, 0)], []) == [("missing", 0.9, 0)]


def test_the_best_fit_of_its_class_says_how_badly_a_label_is_placed() -> None:
    assert errors([(MOVED, 0.9, 0)], [(HERE, 0)]) == [("misplaced", round(0.9 * 2 / 3, 4), 0)]
    assert errors([(HERE, 0.9, 0)], [(HERE, 0)]) == []


def test_a_neighbor_of_the_same_class_does_not_displace_a_label() -> None:
    """The detection fits the second label exactly, so it is not about the first, which nobody saw."""
    assert errors([(MOVED, 0.9, 0)], [(HERE, 0), (MOVED, 0)]) == []


def test_another_class_in_the_same_place_is_a_swap_as_far_as_its_own_is_not_seen() -> None:
    assert errors([(HERE, 0.9, 1)], [(HERE, 0)]) == [("swapped", 0.9, 1)]
    assert errors([(HERE, 0.9, 1), (HERE, 0.4, 0)], [(HERE, 0)]) == [("swapped", 0.5, 1)]
    assert errors([(HERE, 0.3, 1), (HERE, 0.8, 0)], [(HERE, 0)]) == []


def test_a_neighbor_of_another_class_explains_its_own_label_first() -> None:
    assert errors([(MOVED, 0.9, 1), (HERE, 0.8, 0)], [(HERE, 0), (MOVED, 1)]) == []


def test_labels_that_nothing_contradicts_are_no_errors() -> None:
    assert errors([], [(HERE, 0), (THERE, 1)]) == []
    assert errors([], []) == []


def make_image(random: np.random.Generator) -> tuple[list[list[float]], list[int]]:
    """Two to six boxes of three classes on a grid, so that they do not touch."""
    cells = random.permutation(9)[: random.integers(2, 7)]
    boxes = [[100.0 * (c % 3) + 20, 100.0 * (c // 3) + 20, 100.0 * (c % 3) + 70, 100.0 * (c // 3) + 80] for c in cells]
    return boxes, random.integers(3, size=len(boxes)).tolist()


def detect(
    random: np.random.Generator, boxes: list[list[float]], ids: list[int]
) -> list[tuple[list[float], float, int]]:
    """A fair detector: a tenth missed, corners off by 4 px, some classes confused, a false box on every third image."""
    found = [
        ((np.array(box) + random.normal(0, 4, 4)).tolist(), float(random.beta(8, 2)), class_id)
        for box, class_id in zip(boxes, ids, strict=True)
        if random.random() > 0.1
    ]
    found += [(box, float(random.beta(2, 6)), int(random.integers(3))) for box, *_ in found if random.random() < 0.1]
    if random.random() < 1 / 3:
        x, y = random.uniform(0, 250, 2)
        found.append(([x, y, x + 50, y + 50], float(random.beta(2, 6)), int(random.integers(3))))
    return found


def plant(random: np.random.Generator, kind: str, boxes: list[list[float]], ids: list[int]) -> None:
    victim = int(random.integers(len(boxes)))
    if kind == "missing":
        del boxes[victim], ids[victim]
    elif kind == "misplaced":
        shift = random.choice([-1, 1], 2) * random.uniform(0.3, 0.5, 2) * (50, 60)
        boxes[victim] = (np.array(boxes[victim]) + np.tile(shift, 2)).tolist()
    else:
        ids[victim] = (ids[victim] + int(random.integers(1, 3))) % 3


@pytest.mark.parametrize("seed", range(5))
def test_planted_errors_are_in_the_first_twentieth(seed: int) -> None:
    """Ten errors of three kinds on 400 images: at least eight among the first twenty images."""
    random = np.random.default_rng(seed)
    strength, planted = {}, set(range(0, 400, 40))
    for number in range(400):
        boxes, ids = make_image(random)
        found = detect(random, boxes, ids)
        if number in planted:
            plant(random, ("missing", "misplaced", "swapped")[number // 40 % 3], boxes, ids)
        strength[number] = max(
            (value for _, value, _ in errors(found, list(zip(boxes, ids, strict=True)))), default=0.0
        )
    first = sorted(strength, key=lambda number: -strength[number])[:20]
    assert len(planted & set(first)) >= 8
