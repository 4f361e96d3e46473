"""Several answers to one image: which one counts.

Of each person the newest answer stands: they may have changed their mind. Among people, one with an answer
counts before one that skips the image, and of several the one finished last. The rest is kept beside it: it
tells how far annotators agree.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from tasks.contracts import LabeledImage

Known = Mapping[str, Sequence[LabeledImage]]
"""Every answer that label batches hold, by image id, in the order they came in."""


def choose(answers: Iterable[LabeledImage], known: Known) -> tuple[tuple[LabeledImage, ...], tuple[LabeledImage, ...]]:
    """Those that count from now on, one an image; and the news that do not. Both by image id.

    What somebody has said before is no news, however often it is delivered. Where a person takes an answer
    back, that of another one may count again.

    Args:
        answers: one of each person to an image of one delivery at most (``newest_of_each``), in any order.
        known: answers so far.
    """
    news: dict[str, list[LabeledImage]] = {}
    standing: dict[str, dict[tuple[str, int, str], LabeledImage]] = {}
    for label in answers:
        stands = standing.setdefault(label.image_id, {source_of(old): old for old in known.get(label.image_id, ())})
        old = stands.get(source_of(label))
        if old is None or not says_the_same(old, label):
            news.setdefault(label.image_id, []).append(label)
    images: list[LabeledImage] = []
    others: list[LabeledImage] = []
    for image_id in sorted(news):
        before = max(standing[image_id].values(), key=_rank, default=None)
        now = max((standing[image_id] | {source_of(label): label for label in news[image_id]}).values(), key=_rank)
        images += [now] if now is not before else []
        others += sorted((label for label in news[image_id] if label is not now), key=_rank)
    return tuple(images), tuple(others)


def newest_of_each(answers: Iterable[LabeledImage]) -> list[LabeledImage]:
    """The last answer of each person to an image of one delivery."""
    return list({source_of(label): label for label in sorted(answers, key=_age)}.values())


def source_of(label: LabeledImage) -> tuple[str, int, str]:
    """Whose answer to what: image id, batch it was offered in, annotator."""
    return label.image_id, label.offered_in, label.annotator


def says_the_same(first: LabeledImage, second: LabeledImage) -> bool:
    """Whether two answers differ in nothing but when they were given."""
    return (first.status, first.boxes) == (second.status, second.boxes)


def _age(label: LabeledImage) -> tuple[datetime, str]:
    """The text decides between answers of the same second, so that the order they come in does not."""
    return datetime.fromisoformat(label.finished_at), label.model_dump_json()


def _rank(label: LabeledImage) -> tuple[bool, datetime, str]:
    return label.status != "skipped", *_age(label)
