"""Define the columns of every table and the fields of every document that stages exchange.

Shape letters: N boxes of one image, K foreground classes. Lists of N*4 or N*(K+1) numbers are row-major.
Boxes are XYXY in pixels of the original image. Class indices are 0..K-1 in the order of ``classes`` in
params.yaml; index K is background.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

METRICS = ("confidence", "entropy", "overlap")
"""The three metrics of an image's detections, always in this order (docs/method.md#metrics)."""
ALL_METRICS = (*METRICS, "objectness_entropy")
"""With the metric that is measured on request (docs/method.md#objectness-entropy); 0 for all images where it is not."""

_FLOATS = pa.list_(pa.float32())
_HALF_FLOATS = pa.list_(pa.float16())

INDEX = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),  # relative to the workspace, or s3://
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("file_name", pa.string()),  # the user's own name of the image
    ]
)
POOL = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("file_name", pa.string()),
    ]
)
FILE_NAMES = pa.schema([("image_id", pa.string()), ("file_name", pa.string())])
ANNOTATED = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("boxes_xyxy", _FLOATS),  # N*4
        ("class_ids", pa.list_(pa.int32())),  # N
        ("is_crowd", pa.list_(pa.bool_())),  # N, a region of several objects: neither object nor background; null: none
        ("batch", pa.int32()),  # label batch it came in; -1 for validation and calibration
    ]
)
UNLABELED = pa.schema(
    [("image_id", pa.string()), ("uri", pa.string()), ("width_px", pa.int32()), ("height_px", pa.int32())]
)
DETECTIONS = pa.schema(
    [
        ("image_id", pa.string()),
        ("boxes_xyxy", _FLOATS),  # N*4
        ("scores", _FLOATS),  # N, the largest foreground posterior
        ("class_ids", pa.list_(pa.int16())),  # N, its class
        ("class_probs", _HALF_FLOATS),  # N*(K+1), softmax, background last
        ("residual_mass", pa.float32()),  # sum of the scores below infer.score_threshold, whose boxes are not stored
        ("embedding", _HALF_FLOATS),  # one pooled feature vector per image
        ("stability", _FLOATS),  # N, IoU of a box with what a second regression pass makes of it, [0, 1]
        ("region_class_ids", pa.list_(pa.int16())),  # C, the classes that were detected, ascending
        ("region_features", _HALF_FLOATS),  # C*D, score-weighted sum of the features of the regions of each class
        (
            "box_disagreement",
            pa.float32(),
        ),  # from the committee's second member (docs/method.md#committee); null: there is none
        ("class_disagreement", pa.float32()),  # the same about classes
        ("objectness_entropy_raw", pa.float32()),  # docs/method.md#objectness-entropy; null: not measured
        ("objectness_entropy_map", pa.list_(pa.uint8())),  # 16*16 fields of the image, percent; null: not measured
        ("model_digest", pa.string()),  # SHA-256 of the teacher file
    ]
)
# Detections at the moment of selection, with the image's normalized metrics of that day and how it was selected: what
# DWA and the model of single boxes learn from, and what the pool's error is estimated from.
# The file's metadata holds the class names of that day (``with_class_names``).
DETECTIONS_AT_SELECTION = pa.schema(
    [
        *DETECTIONS,
        ("confidence", pa.float64()),
        ("entropy", pa.float64()),
        ("overlap", pa.float64()),
        ("objectness_entropy", pa.float64()),
        ("is_random_pick", pa.bool_()),
        ("picked_by", pa.string()),
        ("num_candidates", pa.int64()),
    ]
)
# All that later stages need to know of the whole pool; they read ``infer`` for the images they picked only.
SCORES = pa.schema(
    [
        ("image_id", pa.string()),
        ("num_boxes", pa.int32()),
        ("num_distinct_classes", pa.int32()),
        ("expected_boxes", pa.float64()),  # docs/method.md#cost
        ("expected_boxes_per_class", _FLOATS),  # K; their sum is expected_boxes
        ("residual_mass", pa.float64()),  # as in DETECTIONS
        ("expected_misses", pa.float64()),  # docs/method.md#eq-26
        ("value", pa.float64()),  # docs/method.md#eq-27; null without enough labeled images
        ("confidence_raw", pa.float64()),
        ("entropy_raw", pa.float64()),
        ("overlap_raw", pa.float64()),
        ("objectness_entropy_raw", pa.float64()),  # as in DETECTIONS
        ("confidence", pa.float64()),  # normalized over the pool, [0, 1]
        ("entropy", pa.float64()),
        ("overlap", pa.float64()),
        ("objectness_entropy", pa.float64()),  # 0 where it is not measured
        ("has_no_detections", pa.bool_()),
        ("features", _FLOATS),  # D = 12 + 2K in every row: the DWA network's inputs that follow the three metrics
    ]
)
CANDIDATE_SCORES = [name for name in SCORES.names if name not in ("features", "expected_boxes_per_class")]
"""Columns of SCORES with one value an image: what a selection strategy and the report see."""
UNCERTAINTY = pa.schema(
    [
        ("image_id", pa.string()),
        *((f"w_{name}", pa.float64()) for name in ALL_METRICS),  # negative in a signed mixture only
        ("uncertainty", pa.float64()),  # docs/method.md#eq-15, [0, 1]
    ]
)
PREVIOUS_UNCERTAINTY = pa.schema([("image_id", pa.string()), ("uncertainty", pa.float64())])
# Detections whose outcome is known, of images that the teacher had not been trained on (docs/method.md#precision).
OUTCOMES = pa.schema(
    [
        ("class_name", pa.string()),  # the class that the detection claims
        ("score", pa.float32()),
        ("is_right", pa.bool_()),  # an object of that class is there, IoU >= 0.5
    ]
)
SELECTION = pa.schema(
    [
        ("image_id", pa.string()),
        ("rank", pa.int32()),  # 1 is picked first
        ("uncertainty", pa.float64()),
        ("expected_boxes", pa.float64()),
        ("expected_minutes", pa.float64()),
        ("is_random_pick", pa.bool_()),  # of the uniform draw, whether the strategy wanted it too or not
        ("picked_by", pa.string()),  # strategy that it was taken from; one of select.portfolio under strategy portfolio
        ("num_candidates", pa.int64()),  # images that the draw was from; the same in all rows
        ("reason", pa.string()),
    ]
)
# Labeled images whose labels the teachers doubt, to be checked with the next batch (docs/method.md#relabel).
RELABEL = pa.schema(
    [
        ("image_id", pa.string()),
        ("rank", pa.int32()),  # behind those of SELECTION
        ("batch", pa.int32()),  # label batch of the label
        ("strength", pa.float64()),  # of the doubt, [0, 1]
        ("kind", pa.string()),  # missing, misplaced or swapped
        ("class_name", pa.string()),  # what the teacher sees there
        ("box_xyxy", _FLOATS),  # 4, where
        ("expected_minutes", pa.float64()),
        ("reason", pa.string()),
    ]
)
# The file's metadata holds the class names (``with_class_names``): the next round compares its teacher with this one.
PREDICTIONS = pa.schema(
    [
        ("model", pa.string()),  # teacher | student
        ("image_id", pa.string()),
        ("boxes_xyxy", _FLOATS),
        ("scores", _FLOATS),
        ("class_ids", pa.list_(pa.int16())),
    ]
)

_CLASSES_KEY = b"gleaner.classes"


def with_class_names(schema: pa.Schema, classes: Sequence[str]) -> pa.Schema:
    """Add the class names that the schema's class indices refer to, as Parquet metadata.

    Tables that outlive one ``params.yaml`` need them: indices alone change their meaning without an error when
    ``classes`` is reordered.
    """
    return schema.with_metadata({_CLASSES_KEY: json.dumps(list(classes), ensure_ascii=False).encode()})


def stored_class_names(schema: pa.Schema) -> list[str] | None:
    """Read the names that ``with_class_names`` stored; None where there are none."""
    stored = (schema.metadata or {}).get(_CLASSES_KEY)
    return None if stored is None else list(json.loads(stored))


LabelStatus = Literal["labeled", "empty", "skipped"]
MAX_SECONDS_SPENT = 30 * 86_400.0
"""Longest working time on an image that is believed: 30 days."""
UnitInterval = Annotated[float, Field(ge=0, le=1)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Box(_Document):
    """One box that a person drew or confirmed."""

    category: str
    """Class name, as in ``classes``."""
    xyxy_px: tuple[float, float, float, float]
    """Corners x1, y1, x2, y2 in pixels of the original image."""


class LabeledImage(_Document):
    """Answer of a person to one image. ``empty`` means reviewed, and no object found."""

    image_id: str
    status: LabelStatus
    boxes: tuple[Box, ...]
    annotator: str
    finished_at: str
    """ISO 8601 with time zone."""
    seconds_spent: float | None
    """Working time the label tool measured; None where it measures none."""
    offered_batch: int
    """Batch in which the image was offered; 0 for the seed set."""
    preannotations: tuple[Box, ...] | None = None
    """Boxes the annotator started from; None where nobody knows, as in the seed set."""
    reported_finished_at: str | None = None
    """What the label tool gave as ``finished_at`` where that time had not come yet; None: its clock was believed."""
    crowd_regions: tuple[Box, ...] = ()
    """Regions of several objects (COCO ``iscrowd``): neither object nor background (docs/method.md#crowd-regions)."""
    checks_batch: int | None = None
    """Label batch of the earlier answer that was shown to be checked (docs/method.md#relabel); None: a first label."""
    is_honeypot: bool = False
    """Given to an image whose label is known, to measure the annotator (docs/method.md#honeypots): never a label."""

    @property
    def num_marked(self) -> int:
        """Boxes and crowd regions together; 0 just where the image is empty or skipped."""
        return len(self.boxes) + len(self.crowd_regions)

    def has_same_content(self, other: "LabeledImage") -> bool:
        """Whether another answer has the same status, boxes and crowd regions."""
        mine, theirs = ((one.status, one.boxes, one.crowd_regions) for one in (self, other))
        return mine == theirs


class LabelBatch(_Document):
    """``data/labels/batch-0001.json``: append-only source data."""

    batch: int
    provider: str
    collected_at: str
    images: tuple[LabeledImage, ...]
    """The answers that count, one an image."""
    other_annotations: tuple[LabeledImage, ...] = ()
    """Further answers to images of this or of an earlier batch; they count for agreement and for time spent."""
    honeypots: tuple[LabeledImage, ...] = ()
    """Answers to honeypots, which only measure their annotators."""
    leased: dict[str, Annotated[int, Field(gt=0)]] = {}
    """Images that stayed with the annotators, by image id, and the batch they were offered in: not to be picked."""


class RunnerUp(_Document):
    """The next likeliest class of a pre-drawn box."""

    category: str
    score: UnitInterval


class Prediction(_Document):
    """A pre-drawn box for the annotator to correct: one for each object (docs/method.md#pre-drawn-boxes)."""

    category: str
    xyxy_px: tuple[float, float, float, float]
    score: UnitInterval
    doubt: UnitInterval | None = None
    """That class or place are wrong (docs/method.md#box-doubt); None: of a box from elsewhere."""
    runner_up: RunnerUp | None = None
    """None: no other class reaches ``preannotation.score_threshold``."""


class AnnotationTask(_Document):
    """One line of ``derived/handoff/manifest.jsonl``."""

    image_id: str
    uri: str
    width_px: int
    height_px: int
    rank: int
    reason: str
    uncertainty: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """U of docs/method.md#eq-15: in [0, 1], except with ``scoring.normalize: none``, where it has no upper bound.
    Of a check: the strength of the teacher's doubt, [0, 1]."""
    predictions: tuple[Prediction, ...]
    """Of a check: the boxes of the present label with score 1, and what the teacher would add."""
    model_digest: str
    checks_batch: int | None = None
    """Label batch of the label that is to be checked (docs/method.md#relabel); None: the image has none."""
    is_honeypot: bool = False
    """Whether its label is known and the answer measures the annotator (docs/method.md#honeypots); not shown."""


class Quarantined(_Document):
    """An item that was set aside, and the reason."""

    item: str
    """File, image or task."""
    reason: str
