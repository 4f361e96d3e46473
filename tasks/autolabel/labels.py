"""Put together the labels that go out: those of people as theirs, accepted detections as the model's.

An image is *complete* where people labeled it, or where it was accepted whole; it is *partial* where only some of its
boxes were accepted, and then nothing says that the rest of it is background. Validation images stay apart, so that
nobody trains on them without meaning to.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from tasks.autolabel.acceptance import Acceptance
from tasks.autolabel.evidence import Evidence, ModelRef
from tasks.data import schemas
from tasks.data.annotations import AnnotatedImage, read_annotated
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace
from tasks.params.autolabel import AutolabelParams
from tasks.storage import files

PROVENANCE = pa.schema(
    [
        ("image_id", pa.string()),
        ("file_name", pa.string()),  # the user's own name of the image
        ("is_complete", pa.bool_()),  # all objects of the image are meant to have a box
        ("category", pa.string()),
        ("xyxy_px", pa.list_(pa.float64())),  # 4
        ("is_crowd", pa.bool_()),
        ("source", pa.string()),  # person | model
        ("part", pa.string()),  # of a person's: batch-0003, calibration, validation; else pool
        ("annotator", pa.string()),  # of a person's, where it is known
        ("finished_at", pa.string()),  # the same, ISO 8601
        ("model_version", pa.int64()),  # this and the rest are null for a person's
        ("model_sha256", pa.string()),
        ("detection", pa.int32()),  # position among the model's detections on the image
        ("score", pa.float64()),
        ("rule", pa.string()),  # class | image | class and image: by which it was accepted
        ("threshold", pa.float64()),  # score from which on boxes of the class are accepted
        ("promised_precision", pa.float64()),  # of the class
        ("precision_bound", pa.float64()),  # lower confidence bound at that threshold
        ("promised_wrong_images_frac", pa.float64()),  # of the images accepted whole
        ("wrong_images_bound", pa.float64()),  # upper confidence bound on their share
        ("confidence_level", pa.float64()),
    ]
)
_Row = dict[str, Any]
_VALIDATION = "validation"


@dataclass(frozen=True)
class LabeledRecord:
    """One image with the boxes that go out."""

    image_id: str
    file_name: str
    uri: str
    width_px: int
    height_px: int
    folder: Literal["complete", "partial", "validation"]
    annotator: str
    rows: tuple[_Row, ...]
    """Of its boxes, PROVENANCE."""

    @property
    def is_complete(self) -> bool:
        """Whether all objects of the image are meant to have a box."""
        return self.folder != "partial"


def people_records(workspace: Workspace, classes: Sequence[str]) -> Iterator[LabeledRecord]:
    """Yield what people labeled: the newest answer to each image, calibration and validation images."""
    pool = pool_rows(workspace)
    for image_id, answer in read_labels(workspace.labels).current.items():
        label, image = answer.label, pool.get(image_id)
        if label.status == "skipped" or image is None:
            continue
        fields = {"part": f"batch-{answer.batch:04d}", "annotator": label.annotator, "finished_at": label.finished_at}
        boxes = [(box, False) for box in label.boxes] + [(box, True) for box in label.crowd_regions]
        yield _person_record(image_id, image, boxes, fields)
    for part, path in (("calibration", workspace.calibration), (_VALIDATION, workspace.val)):
        for annotated in read_annotated(path, classes):
            yield _held_out_record(annotated, pool, part)


def pool_rows(workspace: Workspace) -> dict[str, _Row]:
    """Read uri, size and the user's own name of each image of the pool, labeled or not, by image id."""
    table = files.read_table(workspace.derived("prepare") / "pool.parquet", schemas.POOL)
    names = ["image_id", "uri", "width_px", "height_px", "file_name"]
    return {row["image_id"]: row for row in table.select(names).to_pylist()}


def _held_out_record(annotated: AnnotatedImage, pool: Mapping[str, _Row], part: str) -> LabeledRecord:
    own = {"uri": annotated.uri, "width_px": annotated.width_px, "height_px": annotated.height_px}
    image = pool.get(annotated.image_id, {**own, "file_name": annotated.uri})  # validation images are not in the pool
    boxes = [(box, False) for box in annotated.boxes] + [(box, True) for box in annotated.crowd_regions]
    return _person_record(annotated.image_id, image, boxes, {"part": part, "annotator": None, "finished_at": None})


def _person_record(
    image_id: str, image: Mapping[str, Any], boxes: Sequence[tuple[schemas.Box, bool]], fields: Mapping[str, Any]
) -> LabeledRecord:
    name = _safe_name(image["file_name"], image_id, image["uri"])
    common = {"image_id": image_id, "file_name": name, "is_complete": True, "source": "person", **fields}
    rows = tuple(
        {**_BLANK, **common, "category": box.category, "xyxy_px": list(box.xyxy_px), "is_crowd": is_crowd}
        for box, is_crowd in boxes
    )
    size = image["width_px"], image["height_px"]
    folder: Literal["complete", "validation"] = "validation" if fields["part"] == _VALIDATION else "complete"
    return LabeledRecord(image_id, name, image["uri"], *size, folder, fields["annotator"] or "person", rows)


_BLANK: _Row = dict.fromkeys(PROVENANCE.names)


def accepted_records(
    workspace: Workspace,
    evidence: Evidence,
    acceptance: Acceptance,
    model: ModelRef,
    params: AutolabelParams,
    classes: Sequence[str],
) -> Iterator[LabeledRecord]:
    """Yield the images of the pool that were accepted whole, or of which a box was accepted."""
    images, pool = pool_rows(workspace), evidence.pool
    ends = np.cumsum(pool.num_boxes)
    for position, image_id in enumerate(pool.image_ids):
        first, is_whole = int(ends[position] - pool.num_boxes[position]), bool(acceptance.is_image_accepted[position])
        own = range(first, int(ends[position]))
        is_kept_B = acceptance.is_box_kept
        exported = [box for box in own if (is_whole and is_kept_B[box]) or acceptance.is_box_accepted[box]]
        if not exported and not is_whole:
            continue
        image = images[image_id]
        name = _safe_name(image["file_name"], image_id, image["uri"])
        rows = []
        for box in exported:
            by_class = bool(acceptance.is_box_accepted[box])
            rows.append(
                {
                    **_BLANK,
                    "image_id": image_id,
                    "file_name": name,
                    "is_complete": is_whole,
                    "category": classes[pool.class_ids[box]],
                    "xyxy_px": [float(corner) for corner in pool.boxes_xyxy[box]],
                    "is_crowd": False,
                    "source": "model",
                    "part": "pool",
                    "model_version": model.version,
                    "model_sha256": model.sha256,
                    "detection": box - first,
                    "score": float(pool.scores[box]),
                    "confidence_level": params.confidence_level,
                    **_rule_fields(
                        acceptance,
                        params,
                        int(pool.class_ids[box]),
                        by_class=by_class,
                        by_image=is_whole and bool(is_kept_B[box]),
                    ),
                }
            )
        size = image["width_px"], image["height_px"]
        author = f"model version {model.version}"
        folder: Literal["complete", "partial"] = "complete" if is_whole else "partial"
        yield LabeledRecord(image_id, name, image["uri"], *size, folder, author, tuple(rows))


def _rule_fields(
    acceptance: Acceptance, params: AutolabelParams, class_id: int, *, by_class: bool, by_image: bool
) -> _Row:
    fields: _Row = {"rule": " and ".join(name for name, holds in (("class", by_class), ("image", by_image)) if holds)}
    if by_class:
        rule = acceptance.class_rules[class_id]
        fields |= {"threshold": rule.threshold, "precision_bound": rule.precision_bound}
        fields["promised_precision"] = params.wanted_precision
    if by_image:
        fields["promised_wrong_images_frac"] = params.max_wrong_images_frac
        fields["wrong_images_bound"] = acceptance.image_rule.wrong_bound
    return fields


def _safe_name(name: str, image_id: str, uri: str) -> str:
    """Return the user's name of an image as a path below a folder; else one made of its id."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "://" in name:
        return f"{image_id}{PurePosixPath(uri).suffix}"
    return path.as_posix()
