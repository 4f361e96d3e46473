"""Convert tasks of the manifest to tasks of Label Studio and back, and build the labeling configuration.

The configuration shows the image, why it was selected, and a button for each class. Label Studio gives boxes in percent
of the image's sides. Its COCO export is not used: class ids there follow the alphabet, file names are Label Studio's
own, and Gleaner's image ids are missing.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from flows.annotation.providers.base import AnnotationBatch, RawAnnotation, to_raw_annotation
from tasks.data.formats.label_studio import parse_tasks
from tasks.data.schemas import AnnotationTask, Prediction

CONTROL, IMAGE = "label", "image"
"""Names of the two tags that every region refers to."""
_HOTKEYS = "1234567890"
_PALETTE = [
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#8C564B",
    "#7F3FBF",
    "#17BECF",
    "#BCBD22",
    "#E377C2",
    "#2CA02C",
    "#FF9896",
    "#1F3A93",
    "#AEC7E8",
    "#A65628",
    "#98DF8A",
    "#B2182B",
    "#5E3C99",
]
"""The first seven are those of Okabe and Ito, which are distinguishable with color blindness."""
MODEL_VERSION = "gleaner"
"""``model_version`` of every prediction. The label stream shows the predictions of one version per project only: with
the teacher's digest as version, tasks of the last batch would lose theirs as soon as the next batch is imported. The
digest is in the task's data instead."""
_SHORT_DIGEST = 12
_EXPORT = "export of Label Studio"


def labeling_config(classes: Sequence[str]) -> str:
    """Build the configuration; a class keeps its color and key when others are appended.

    The first ten classes get the keys 1 to 9 and 0; Label Studio assigns free letters to the others.
    """
    view = ET.Element("View")
    ET.SubElement(view, "Header", value="$about", size="5")
    control = ET.SubElement(view, "RectangleLabels", name=CONTROL, toName=IMAGE, canRotate="false", strokeWidth="2")
    for number, name in enumerate(classes):
        label = ET.SubElement(control, "Label", value=name, background=_PALETTE[number % len(_PALETTE)])
        if number < len(_HOTKEYS):
            label.set("hotkey", _HOTKEYS[number])
    ET.SubElement(view, "Image", name=IMAGE, value="$image", zoom="true", zoomControl="true", rotateControl="false")
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")


def config_error(config: str, classes: Sequence[str]) -> str | None:
    """Return why boxes drawn with a configuration could not be read; None: they can.

    Teams may change colors and keys, and add classes and tags.
    """
    try:
        root = ET.fromstring(config)
    except ET.ParseError as error:
        return f"the labeling configuration is no XML ({error})"
    control = root.find(f".//RectangleLabels[@name='{CONTROL}'][@toName='{IMAGE}']")
    if control is None or root.find(f".//Image[@name='{IMAGE}'][@value='$image']") is None:
        return f"the labeling configuration has no RectangleLabels {CONTROL!r} on an Image {IMAGE!r}"
    configured = {label.get("value") for label in control.iter("Label")}
    if missing := [name for name in classes if name not in configured]:
        return f"the labeling configuration lacks {', '.join(map(repr, missing))}, expected all classes of params.yaml"
    return None


def to_task(task: AnnotationTask, delivery: AnnotationBatch, image: str, image_sha256: str | None) -> dict[str, Any]:
    """Build one task for the import.

    Args:
        task: of the manifest.
        delivery: the batch it is offered in.
        image: where Label Studio finds the image: a path it serves, or an s3 uri.
        image_sha256: digest of the image's bytes; None for images in an object store, which are not read.
    """
    return {
        "data": {
            "image": image,
            "image_id": task.image_id,
            "image_sha256": image_sha256,
            "delivery": delivery.key,
            "batch": delivery.batch,
            "width_px": task.width_px,
            "height_px": task.height_px,
            **changing_data(task, delivery),
        },
        "predictions": [to_prediction(task)] if task.predictions else [],
    }


def changing_data(task: AnnotationTask, delivery: AnnotationBatch) -> dict[str, Any]:
    """Return the fields of a task's data that a newer teacher changes.

    ``priority`` is the rank as a text that sorts like a number: the Data Manager orders a task's data as text.
    """
    doubts = [box.doubt for box in task.predictions if box.doubt is not None]
    return {
        "about": f"Batch {delivery.batch}, rank {task.rank}: {task.reason}",
        "rank": task.rank,
        "priority": f"{task.rank:06d}",
        "reason": task.reason,
        "largest_doubt": max(doubts, default=None),
        "teacher": short_digest(task),
    }


def short_digest(task: AnnotationTask) -> str:
    """Return the beginning of the digest of the teacher that has drawn the boxes."""
    return task.model_digest[:_SHORT_DIGEST]


def to_prediction(task: AnnotationTask) -> dict[str, Any]:
    """Build the pre-drawn boxes of a task, the least sure one first: Label Studio lists them in this order."""
    scores = [prediction.score for prediction in task.predictions]
    by_doubt = sorted(enumerate(task.predictions), key=lambda item: (-(item[1].doubt or 0.0), item[0]))
    return {
        "model_version": MODEL_VERSION,
        "score": sum(scores) / len(scores),
        "result": [_region(number, box, task) for number, box in by_doubt],
    }


def _region(number: int, box: Prediction, task: AnnotationTask) -> dict[str, Any]:
    x1, y1, x2, y2 = box.xyxy_px
    return {
        "id": f"teacher-{number}",
        "type": "rectanglelabels",
        "from_name": CONTROL,
        "to_name": IMAGE,
        "original_width": task.width_px,
        "original_height": task.height_px,
        "image_rotation": 0,
        "score": box.score,
        **_note(box),
        "value": {
            "x": 100 * x1 / task.width_px,
            "y": 100 * y1 / task.height_px,
            "width": 100 * (x2 - x1) / task.width_px,
            "height": 100 * (y2 - y1) / task.height_px,
            "rotation": 0,
            "rectanglelabels": [box.category],
        },
    }


def _note(box: Prediction) -> dict[str, Any]:
    """Name the next likeliest class and the doubt in the region's note, which its details show."""
    text = []
    if box.runner_up is not None:
        text.append(f"or {box.runner_up.category} ({box.runner_up.score:.2f})")
    if box.doubt is not None:
        text.append(f"doubt {box.doubt:.2f}")
    return {"meta": {"text": text}} if text else {}


def parse_export(tasks: Sequence[Any], emails: Mapping[int, str], project_url: str) -> list[RawAnnotation]:
    """Return the annotations of exported tasks: of each annotator and image the newest that is not skipped.

    An annotator who only skipped the image has one that is skipped.

    Args:
        tasks: as ``exportType=JSON`` returns them. Anything may be missing or wrong in them.
        emails: e-mail addresses of the users, by number.
        project_url: address of the project, for links to the tasks.
    """
    latest: dict[tuple[str, str], RawAnnotation] = {}
    for number, image in enumerate(parse_tasks(tasks, _EXPORT).images):
        if image.annotation_id is None and image.status is None and not image.problems:
            continue  # listed without an annotation
        raw = to_raw_annotation(
            image,
            annotator=_annotator_name(image.annotator, emails),
            answer_id=image.annotation_id,
            url=None if image.task_id is None else f"{project_url}/data?task={image.task_id}",
        )
        # Two annotations without an annotator may be two people's.
        key = (repr(raw["image_id"]), repr(number) if raw["annotator"] is None else raw["annotator"])
        if key not in latest or _priority(raw) >= _priority(latest[key]):
            latest[key] = raw
    return list(latest.values())


def _priority(raw: RawAnnotation) -> tuple[bool, str]:
    """Sort key; Label Studio writes times in one format and in UTC, so they sort as text."""
    return raw["status"] != "skipped", str(raw["finished_at"])


def _annotator_name(annotator: str | None, emails: Mapping[int, str]) -> str | None:
    """Return the e-mail address, or the user's number where the user was deleted."""
    if annotator is None or not annotator.isdecimal():
        return annotator
    return emails.get(int(annotator)) or f"user {annotator}"
