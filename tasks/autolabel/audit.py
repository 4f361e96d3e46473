"""Draw accepted boxes and images at random for people to check, and compare what they say with what was promised.

Boxes are drawn one by one from all accepted boxes, and images from all images accepted whole, so each sample is a plain
random one and its share of right ones has an exact interval (docs/method.md#autolabel-audit).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tasks.autolabel.evidence import ModelRef, judge_image
from tasks.autolabel.labels import LabeledRecord
from tasks.data.annotations import MarkedBoxes
from tasks.data.schemas import AnnotationTask, Prediction
from tasks.evaluation.risk_control import exact_interval
from tasks.params.autolabel import AutolabelParams
from tasks.runtime.errors import UserError
from tasks.selection.strategies.base import seeded_shuffle
from tasks.storage import files

SAMPLE = "sample.json"
RESULT = "result.json"
Verdict = Literal["broken", "not refuted", "shown", "not checked"]
Document = dict[str, Any]


def draw_audit(records: Sequence[LabeledRecord], params: AutolabelParams, seed: int) -> Document:
    """Draw what people check; the same accepted labels and seed give the same sample.

    Args:
        records: what was accepted of the pool.
        params: sizes of the samples, and what is promised.
        seed: ``seed`` of params.yaml.

    Returns:
        Drawn ``boxes`` (image and detection) and ``images``, the accepted boxes of all images that are shown, and what
        was promised.
    """
    by_class = {
        f"{row['image_id']}/{row['detection']}": row
        for record in records
        for row in record.rows
        if row["promised_precision"] is not None
    }
    drawn = seeded_shuffle(by_class, seed=seed, purpose="autolabel audit: boxes")[: params.audit_boxes]
    whole = [record.image_id for record in records if record.is_complete]
    images = seeded_shuffle(whole, seed=seed, purpose="autolabel audit: images")[: params.audit_images]
    boxes = [{"image_id": by_class[key]["image_id"], "detection": by_class[key]["detection"]} for key in drawn]
    shown_ids = {box["image_id"] for box in boxes} | set(images)
    columns = ("detection", "category", "xyxy_px", "score", "rule")
    return {
        "promised_precision": params.wanted_precision,
        "promised_wrong_images_frac": params.max_wrong_images_frac,
        "box_iou": params.box_iou,
        "confidence_level": params.audit_confidence_level,
        "num_accepted_boxes": len(by_class),
        "num_whole_images": len(whole),
        "boxes": boxes,
        "images": images,
        "shown": {
            record.image_id: [{name: row[name] for name in columns} for row in record.rows]
            for record in records
            if record.image_id in shown_ids
        },
    }


def audit_tasks(records: Sequence[LabeledRecord], sample: Document, model: ModelRef) -> list[AnnotationTask]:
    """Return the tasks of the images that are shown, with their accepted boxes drawn, in a random order."""
    by_id = {record.image_id: record for record in records if record.image_id in sample["shown"]}
    tasks = []
    for rank, image_id in enumerate(seeded_shuffle(by_id, seed=0, purpose="autolabel audit: order"), start=1):
        record = by_id[image_id]
        predictions = tuple(
            Prediction(category=row["category"], xyxy_px=tuple(row["xyxy_px"]), score=min(max(row["score"], 0.0), 1.0))
            for row in record.rows
        )
        tasks.append(
            AnnotationTask(
                image_id=image_id,
                uri=record.uri,
                width_px=record.width_px,
                height_px=record.height_px,
                rank=rank,
                reason="audit of labels that a model made: correct the boxes, and draw each object that has none",
                uncertainty=0.0,
                predictions=predictions,
                model_digest=model.sha256,
            )
        )
    return tasks


def read_sample(folder: Path) -> Document:
    """Read what was drawn.

    Raises:
        UserError: the folder was not written by ``gleaner autolabel``.
    """
    path = folder / "audit" / SAMPLE
    if not path.is_file():
        raise UserError(folder, "there is no audit/sample.json, expected a folder of gleaner autolabel")
    sample: Document = files.read_json(path)
    return sample


def judge_audit(sample: Document, answers: Mapping[str, MarkedBoxes], classes: Sequence[str]) -> Document:
    """Compare the answers of people with what was promised.

    Args:
        sample: of ``draw_audit``.
        answers: what people found in each image that they finished; class indices in the order of ``classes``.
        classes: class names.

    Returns:
        For boxes, for each class, and for images: how many of the checked ones are right, with an exact interval, and
        what that says of the promise; and the images without an answer, which say nothing.
    """
    right: dict[tuple[str, int], bool] = {}
    image_right: dict[str, bool] = {}
    for image_id, shown in sample["shown"].items():
        if image_id in answers:
            verdict = _judge_image(shown, answers[image_id], classes, sample["box_iou"])
            right |= {(image_id, box["detection"]): ok for box, ok in zip(shown, verdict[0], strict=True)}
            image_right[image_id] = verdict[1]
    category = {(i, box["detection"]): box["category"] for i, shown in sample["shown"].items() for box in shown}
    checked = [key for box in sample["boxes"] if (key := (box["image_id"], box["detection"])) in right]
    promised, level = sample["promised_precision"], sample["confidence_level"]
    by_class = {
        name: _finding([right[key] for key in checked if category[key] == name], promised, level) for name in classes
    }
    whole = [image_right[image_id] for image_id in sample["images"] if image_id in image_right]
    return {
        "boxes": _finding([right[key] for key in checked], promised, level),
        "by_class": {name: found for name, found in by_class.items() if found["checked"]},
        "images": _finding(whole, 1 - sample["promised_wrong_images_frac"], level),
        "confidence_level": level,
        "unanswered": sorted(set(sample["shown"]) - set(answers)),
    }


def _judge_image(
    shown: Sequence[Document], answer: MarkedBoxes, classes: Sequence[str], min_iou: float
) -> tuple[list[bool], bool]:
    """Return whether each box shown is right, and whether those by the rule of images are just what is there."""
    boxes_N4 = np.array([box["xyxy_px"] for box in shown], dtype=np.float64).reshape(-1, 4)
    scores_N = np.array([box["score"] for box in shown], dtype=np.float64)
    class_ids_N = np.array([classes.index(box["category"]) for box in shown], dtype=np.int64)
    is_right_N, num_missed = judge_image(boxes_N4, scores_N, class_ids_N, answer.boxes_xyxy, answer.class_ids, min_iou)
    by_image_N = np.array(["image" in box["rule"] for box in shown], dtype=bool)
    return is_right_N.tolist(), bool((by_image_N == is_right_N).all()) and num_missed == 0


def _finding(right: Sequence[bool], promised: float, level: float) -> Document:
    found = exact_interval(sum(right), len(right), level)
    verdict: Verdict = "not refuted"
    if not right:
        verdict = "not checked"
    elif found.high < promised:
        verdict = "broken"
    elif found.low >= promised:
        verdict = "shown"
    return {
        "promised": promised,
        "checked": found.num_all,
        "right": found.num_right,
        "found": found.num_right / found.num_all if right else None,
        "low": found.low,
        "high": found.high,
        "verdict": verdict,
    }
