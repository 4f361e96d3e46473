"""What lies in an inbox, made into answers.

When is an image finished? A YOLO or VOC file of its own says so, even an empty one, unless it is byte for byte the one
that was handed out. A COCO file lists images nobody opened as well: there an image counts when the file, or a line of
``reviewed.csv``, says that somebody has reviewed it, or when it has boxes and they are not the pre-drawn ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from flows.labels.providers.base import Returned
from flows.labels.providers.folder.layouts import Offered
from flows.labels.providers.folder.place import Entry, Place
from flows.labels.providers.folder.recognise import InboxFiles, Source, Trouble
from flows.labels.providers.folder.said import Said
from tasks.contracts import HandoffTask, Prediction

_SAME_PX = 0.5
"""Tools round coordinates when they save."""


@dataclass(frozen=True)
class Inbox:
    """Everything one inbox holds."""

    answers: Sequence[Returned]
    """All of them, by image and annotator; which of several counts is decided at the door."""
    troubles: Sequence[Returned]
    """With a ``problem`` instead of boxes: the door sets them aside."""
    waiting: Sequence[str]
    """What is not finished, in words."""


def read_inbox(
    place: Place, folder: str, offered: Sequence[Offered], classes: Sequence[str] | None, unnamed: str
) -> Inbox:
    """Read all files below ``folder``.

    Args:
        place: where.
        folder: ``inbox/batch-0003``; need not exist yet.
        offered: the images of the batch.
        classes: class names by number as the batch went out; None where that is not known any more.
        unnamed: what to call an annotator whom no file names.

    Raises:
        ProviderError: the place is out of reach.
    """
    tasks = {image.task.image_id: image for image in offered}
    found = InboxFiles(place, folder, tasks, classes)
    answering = _Answering(found, place, folder, tasks, unnamed)
    for source in found.sources:
        answering.take(source)
    answering.take_marks()
    return answering.result()


class _Answering:
    """From what the files say to answers."""

    def __init__(
        self, found: InboxFiles, place: Place, folder: str, offered: Mapping[str, Offered], unnamed: str
    ) -> None:
        self._found, self._offered, self._unnamed = found, offered, unnamed
        self._place, self._folder, self._batch = place, folder, PurePosixPath(folder).name
        self._answers: list[Returned] = []
        self._troubles = list(found.troubles)
        self._untouched: Counter[str] = Counter()

    def take(self, source: Source) -> None:
        """One thing a file says: an answer, a trouble, or an image nobody has finished."""
        said, image_id = source.said, self._found.image_id_of(source.said)
        if image_id is None:
            reason = said.problem or f"the image is called {said.image[:100]!r}, expected an id or name of the batch"
            self._troubles.append(Trouble(source.entry, said.image, reason, said.annotator))
            return
        task = self._offered[image_id].task
        if problem := said.problem or _other_size(said, task):
            self._troubles.append(Trouble(source.entry, image_id, problem, said.annotator))
        elif image_id in self._found.marks or _is_finished(source, task):
            self._answers.append(self._answer(source.entry, image_id, said))
        else:
            self._untouched[source.entry.name] += 1

    def take_marks(self) -> None:
        """Lines of ``reviewed.csv`` that are answers by themselves."""
        answered = {answer["image_id"] for answer in self._answers}
        for image_id, (entry, mark) in self._found.marks.items():
            if mark.status in ("empty", "skipped") and image_id not in answered:
                self._answers.append(self._answer(entry, image_id, Said(image_id)))

    def result(self) -> Inbox:
        """Everything taken, by image."""
        reason = "neither marked as reviewed nor other than handed out"
        untouched = [f"{name}: {count} images are {reason}" for name, count in sorted(self._untouched.items())]
        return Inbox(
            answers=sorted(self._answers, key=lambda answer: (answer["image_id"], answer["annotator"])),
            troubles=[self._refused(trouble) for trouble in self._troubles],
            waiting=[*self._found.waiting, *untouched],
        )

    def _answer(self, entry: Entry, image_id: str, said: Said) -> Returned:
        mark = self._found.marks[image_id][1] if image_id in self._found.marks else None
        annotator = str(said.annotator or (mark and mark.annotator) or self._unnamed)
        seconds = said.seconds_spent if said.seconds_spent is not None else mark and mark.seconds_spent
        return {
            "image_id": image_id,
            "status": said.status or (mark and mark.status) or ("labeled" if said.boxes else "empty"),
            "boxes": [dict(box) for box in said.boxes],
            "annotator": annotator,
            "finished_at": said.finished_at or (mark and mark.finished_at) or _time_of(entry),
            "seconds_spent": seconds,
            "answer_id": f"{self._batch}/{annotator}/{image_id}",
            "link": self._link(entry),
            "image_sha256": said.sha256,
        }

    def _link(self, entry: Entry) -> str:
        return self._place.where(f"{self._folder}/{entry.name}")

    def _refused(self, trouble: Trouble) -> Returned:
        return {
            "image_id": trouble.image,
            "problem": f"{trouble.entry.name}: {trouble.reason}",
            "annotator": str(trouble.annotator or self._unnamed),
            "finished_at": _time_of(trouble.entry),
            "answer_id": f"{self._batch}/{trouble.entry.name}#{trouble.image}",
            "link": self._link(trouble.entry),
        }


def _is_finished(source: Source, task: HandoffTask) -> bool:
    if source.said.is_reviewed:
        return True
    if source.said.is_explicit:
        return not source.is_untouched
    return bool(source.said.boxes) and not _same_boxes(source.said.boxes, task.predictions)


def _same_boxes(boxes: Sequence[Mapping[str, Any]], predictions: Sequence[Prediction]) -> bool:
    """Whether these are the pre-drawn boxes, in any order and to half a pixel."""
    left = list(predictions)
    for box in boxes:
        same = [p for p in left if p.category == box["category"] and _is_near(p.xyxy_px, box["xyxy_px"])]
        if not same:
            return False
        left.remove(same[0])
    return not left


def _is_near(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) <= _SAME_PX for a, b in zip(one, other, strict=True))


def _other_size(said: Said, task: HandoffTask) -> str | None:
    if said.size_px is None or said.size_px == (task.width_px, task.height_px):
        return None
    stated = f"the labeled picture is {said.size_px[0]} x {said.size_px[1]} px"
    return f"{stated}, expected {task.width_px} x {task.height_px} px as it was handed out"


def _time_of(entry: Entry) -> str:
    return entry.modified_at.isoformat(timespec="seconds")
