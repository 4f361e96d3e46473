"""Wrong classes planted in the labels of a study's arm, to measure what a learner makes of wrong labels."""

from collections.abc import Sequence

import numpy as np

from tasks.data.schemas import Box, LabelBatch

_STREAM = 7


def plant_wrong_classes(batch: LabelBatch, classes: Sequence[str], frac: float, seed: int) -> LabelBatch:
    """Give a share of the boxes another class, each of the others with equal chance; places and crowd regions stay.

    A larger share with the same seed has the wrong boxes of a smaller one among its own.

    Args:
        batch: its images stay in their order.
        classes: names, at least two.
        frac: share of all boxes, in [0, 1]; their number is rounded.
        seed: of the draw.

    Raises:
        ValueError: fewer than two classes.
    """
    num_boxes = sum(len(image.boxes) for image in batch.images)
    if len(classes) < 2:
        raise ValueError(f"classes are {len(classes)}, expected at least 2: there is no other class")
    rng = np.random.default_rng([seed, _STREAM])
    order, steps = rng.permutation(num_boxes), rng.integers(1, len(classes), num_boxes)
    wrong = set(order[: round(frac * num_boxes)].tolist())
    images, number = [], 0
    for image in batch.images:
        boxes: list[Box] = []
        for box in image.boxes:
            shift = int(steps[number]) if number in wrong else 0
            category = classes[(classes.index(box.category) + shift) % len(classes)]
            boxes.append(box.model_copy(update={"category": category}))
            number += 1
        images.append(image.model_copy(update={"boxes": tuple(boxes)}))
    return batch.model_copy(update={"images": tuple(images)})
