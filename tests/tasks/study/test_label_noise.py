"""Wrong labels that are planted: how many, which, and that nothing else changes."""

from collections import Counter

import pytest

from tasks.data.schemas import Box, LabelBatch, LabeledImage
from tasks.study.label_noise import plant_wrong_classes

CLASSES = ("red", "green", "blue")


def batch(num_images: int = 20, boxes_per_image: int = 5) -> LabelBatch:
    images = [
        LabeledImage(
            image_id=str(number),
            status="labeled",
            boxes=tuple(
                Box(category=CLASSES[(number + i) % 2], xyxy_px=(i, 0, i + 5, 5)) for i in range(boxes_per_image)
            ),
            annotator="imported",
            finished_at="2026-01-01T00:00:00+00:00",
            seconds_spent=None,
            offered_batch=0,
            crowd_regions=(Box(category="red", xyxy_px=(0, 0, 9, 9)),),
        )
        for number in range(num_images)
    ]
    return LabelBatch(batch=0, provider="import", collected_at="2026-01-01T00:00:00+00:00", images=tuple(images))


def wrong_boxes(frac: float, seed: int) -> set[tuple[str, int]]:
    truth, got = batch(), plant_wrong_classes(batch(), CLASSES, frac, seed)
    found = set()
    for one, two in zip(truth.images, got.images, strict=True):
        assert two.model_copy(update={"boxes": one.boxes}) == one
        for number, (own, other) in enumerate(zip(one.boxes, two.boxes, strict=True)):
            assert own.xyxy_px == other.xyxy_px
            if own.category != other.category:
                found.add((one.image_id, number))
    return found


@pytest.mark.parametrize(("frac", "number"), [(0.0, 0), (0.2, 20), (0.414, 41), (1.0, 100)])
def test_a_share_of_the_boxes_has_another_class(frac: float, number: int) -> None:
    assert len(wrong_boxes(frac, seed=1)) == number


def test_the_same_boxes_are_wrong_each_time_and_more_with_a_larger_share() -> None:
    assert wrong_boxes(0.2, 1) == wrong_boxes(0.2, 1) < wrong_boxes(0.4, 1)
    assert wrong_boxes(0.2, 1) != wrong_boxes(0.2, 2)


def test_each_other_class_is_as_likely() -> None:
    truth = batch(num_images=600)
    got = plant_wrong_classes(truth, CLASSES, 1.0, seed=3)
    changes = Counter(
        (own.category, other.category)
        for one, two in zip(truth.images, got.images, strict=True)
        for own, other in zip(one.boxes, two.boxes, strict=True)
    )
    assert set(changes) == {("red", "green"), ("red", "blue"), ("green", "red"), ("green", "blue")}
    assert all(abs(number - 750) < 100 for number in changes.values())


def test_one_class_has_no_wrong_one() -> None:
    with pytest.raises(ValueError, match="classes are 1, expected at least 2"):
        plant_wrong_classes(batch(), CLASSES[:1], 0.5, 0)
