"""Draw the seed batch: a number of images, a share of them, or images with some boxes of every class (few-shot)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.data.image_record import ImageRecord
from tasks.runtime.errors import UserError


@dataclass(frozen=True)
class ImagePercent:
    """A share of the annotated images that are neither validation nor calibration."""

    percent: float
    """In (0, 100)."""

    def __str__(self) -> str:
        """Say what is drawn."""
        return f"{self.percent:g} % of the images"


@dataclass(frozen=True)
class BoxesPerClass:
    """So many images that every class has at least ``count`` boxes."""

    count: int

    def __str__(self) -> str:
        """Say what is drawn."""
        return f"at least {self.count} {'box' if self.count == 1 else 'boxes'} of every class"


SeedSize = int | ImagePercent | BoxesPerClass
"""An int is a number of images."""


def draw_seed(shuffled: Sequence[ImageRecord], size: ImagePercent | BoxesPerClass, where: object) -> list[ImageRecord]:
    """Choose seed images from annotated ones in random order.

    Whole images are labeled, so ``BoxesPerClass`` gives at least the wanted boxes: an object without its box would be
    learned as background. Classes get their turn from the rarest on, and each takes images in the order given until it
    has enough, so that frequent classes, which come along, exceed the number least.

    Raises:
        UserError: a class has fewer boxes than wanted; ``where`` names the source.
    """
    if isinstance(size, ImagePercent):
        return list(shuffled[: max(round(size.percent / 100 * len(shuffled)), 1)])
    boxes = [Counter(box.category for box in record.boxes or ()) for record in shuffled]
    available = sum(boxes, Counter[str]())
    _require_enough(available, size.count, where)
    chosen: dict[int, None] = {}
    drawn: Counter[str] = Counter()
    for category in sorted(available, key=lambda name: (available[name], name)):
        for position, counts in enumerate(boxes):
            if drawn[category] >= size.count:
                break
            if counts[category] and position not in chosen:
                chosen[position] = None
                drawn += counts
    return [shuffled[position] for position in sorted(chosen)]


def _require_enough(available: Mapping[str, int], count: int, where: object) -> None:
    rare = {name: number for name, number in available.items() if number < count}
    if rare or not available:
        listed = ", ".join(f"{number} of {name!r}" for name, number in sorted(rare.items())) or "0"
        problem = f"boxes besides validation and calibration are {listed}, expected at least {count} of every class"
        raise UserError(where, problem, "Ask for fewer boxes per class, or leave the class out of the data.")
