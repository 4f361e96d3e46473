"""Mix images whose label is known into a batch; the answers measure their annotators (docs/method.md#honeypots).

Known are labels that the campaign started with, and those in which two annotators agree. Validation and calibration
images are never used: what measures the model stays unseen.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from flows.annotation.batches import all_annotation_batches, open_images
from tasks.data.annotations import AnnotatedImage, read_annotated
from tasks.data.label_store import LabelStore, read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import AnnotationTask, Box, LabeledImage, Prediction
from tasks.params import Params
from tasks.reporting.agreement import compare

MIN_AGREEMENT_F1 = 0.8
"""Of the answers of two annotators that make a label known; boxes match at IoU 0.5."""
MISSING_PROBABILITY, MOVED_PROBABILITY = 0.25, 0.25
"""Of each pre-drawn box of a honeypot: that it is left out, and that it is moved."""
_MOVED_FRAC = 0.5
"""Of its sides that a moved box is moved by, so that its IoU with the label is 1/7."""
_SCORES = (0.3, 0.99)


def with_honeypots(
    workspace: Workspace, params: Params, tasks: Sequence[AnnotationTask], batch: int
) -> Sequence[AnnotationTask]:
    """Return the tasks of a batch with honeypots among them; the same ones whenever it is prepared anew.

    Args:
        workspace: its ``derived/`` is that of the round that offers the batch.
        params: share of honeypots, and the classes.
        tasks: those of the manifest, by rank; none: none is offered.
        batch: number of the batch.
    """
    new = [task for task in tasks if task.checks_batch is None]
    wanted = round(params.provider.honeypot_frac * len(new)) or int(params.provider.honeypot_frac > 0)
    if not new or not wanted:
        return tasks
    store = read_labels(workspace.labels)
    deliveries = all_annotation_batches(workspace)
    busy = {task.image_id for task in tasks} | {i for found in deliveries for i in open_images(found, store)}
    shown = Counter(image_id for found in deliveries for image_id in found.checked_ids)
    known = known_labels(read_annotated(workspace.derived("assemble") / "labeled.parquet", params.classes), store, busy)
    seed = f"{params.seed}/{batch}"
    chosen = sorted(known, key=lambda image: (shown[image.image_id], _digest(seed, image.image_id)))[:wanted]
    has_boxes = any(task.predictions for task in new)
    return _mixed(tasks, chosen, seed, has_boxes=has_boxes)


def known_labels(images: Sequence[AnnotatedImage], store: LabelStore, busy: Collection[str]) -> list[AnnotatedImage]:
    """Return the images whose label may be taken as the truth.

    Args:
        images: the labeled ones that are trained on.
        store: all labels.
        busy: images that are with the annotators, or about to be.
    """
    return [
        image
        for image in images
        if image.image_id not in busy
        and image.boxes
        and not image.crowd_regions  # not every label tool can show them and give them back
        and knows(store, image.image_id)
    ]


def knows(store: LabelStore, image_id: str) -> bool:
    """Whether an image's label is one the campaign started with, or one that two annotators agree on."""
    found = store.current.get(image_id)
    if found is None or found.label.status != "labeled":
        return False
    return found.label.offered_batch == 0 or bool(_agreeing(found.label, store.all_annotations))


def _agreeing(label: LabeledImage, all_annotations: Mapping[str, Sequence[LabeledImage]]) -> set[str]:
    """The other annotators whose latest answer is the label, up to small differences; a check saw it, so it is none."""
    latest = {other.annotator: other for other in all_annotations.get(label.image_id, ()) if other.checks_batch is None}
    return {
        name
        for name, other in latest.items()
        if name != label.annotator
        and other.status == "labeled"
        and (compare(label.boxes, other.boxes).f1 or 0.0) >= MIN_AGREEMENT_F1
    }


def _mixed(
    tasks: Sequence[AnnotationTask], chosen: Sequence[AnnotatedImage], seed: str, *, has_boxes: bool
) -> list[AnnotationTask]:
    """Put each honeypot behind a task at random, with that task's rank and reason, so that it looks like any other."""
    rng = np.random.default_rng(int(_digest(seed, "places")[:12], 16))
    behind: dict[int, list[AnnotatedImage]] = {}
    places = [number for number, task in enumerate(tasks) if task.checks_batch is None]
    for image in chosen:
        behind.setdefault(int(rng.choice(places)), []).append(image)
    mixed: list[AnnotationTask] = []
    for number, task in enumerate(tasks):
        mixed.append(task)
        mixed += [_honeypot(image, task, seed, has_boxes=has_boxes) for image in behind.get(number, ())]
    return mixed


def _honeypot(image: AnnotatedImage, neighbor: AnnotationTask, seed: str, *, has_boxes: bool) -> AnnotationTask:
    size_px = image.width_px, image.height_px
    drawn = _planted(image.boxes, size_px, _digest(seed, image.image_id)) if has_boxes else ()
    changes = {
        "image_id": image.image_id,
        "uri": image.uri,
        "width_px": image.width_px,
        "height_px": image.height_px,
        "predictions": drawn,
        "is_honeypot": True,
    }
    return neighbor.model_copy(update=changes)


def _planted(boxes: Sequence[Box], size_px: tuple[int, int], digest: str) -> tuple[Prediction, ...]:
    """Pre-draw the boxes of a label with faults to be found: some are left out, some are moved."""
    rng = np.random.default_rng(int(digest[:12], 16))
    drawn = []
    for box in boxes:
        fault, score = rng.random(), round(float(rng.uniform(*_SCORES)), 4)
        signs = rng.choice([-1, 1], 2)
        if fault < MISSING_PROBABILITY:
            continue
        corners = box.xyxy_px
        if fault < MISSING_PROBABILITY + MOVED_PROBABILITY:
            corners = _moved(corners, size_px, signs.tolist())
        drawn.append(Prediction(category=box.category, xyxy_px=corners, score=score))
    return tuple(drawn)


def _moved(
    corners: tuple[float, float, float, float], size_px: tuple[int, int], signs: Sequence[int]
) -> tuple[float, float, float, float]:
    """Move a box by half its sides, towards the middle where it would leave the image, and cut it there."""
    moved: list[tuple[float, float]] = []
    for axis in (0, 1):
        begin, end, length = corners[axis], corners[axis + 2], size_px[axis]
        step = _MOVED_FRAC * (end - begin) * signs[axis]
        if begin + step < 0 or end + step > length:
            step = -step
        moved.append((max(begin + step, 0.0), min(end + step, float(length))))
    (x1, x2), (y1, y2) = moved
    return x1, y1, x2, y2


def _digest(seed: str, text: str) -> str:
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()
