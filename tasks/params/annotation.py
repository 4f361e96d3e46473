"""The sections of ``params.yaml`` on people who label and on what their answers must be; no stage reads them."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.params.stages import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section
from tasks.runtime.extensions import is_class_path, name_or_class_path


class LabelValidationParams(Section):
    """Checks that a returned label must pass to become source data; read by no stage.

    The four after ``max_clock_skew_minutes`` make an answer *suspicious*: it is set aside until a person confirms it.
    They are lenient, because a false alarm costs a person's time and keeps a good label, often a surprising one, out of
    training, while a wrong label that is accepted is one of many.
    """

    min_box_side_px: NonNegativeFloat
    """Boxes with a shorter side, in pixels of the original image, are refused: most are slips of the mouse."""
    duplicate_iou_threshold: Fraction
    """Of two boxes of one class overlapping more than this, the second is left out."""
    max_clock_skew_minutes: NonNegativeFloat
    """Minutes by which the finishing time of an answer may be later than its collection. Beyond that one of the clocks
    is wrong, and the time of the collection is used."""
    min_teacher_ap50: NonNegativeFloat
    """AP50 in percent, on the validation set, from which on answers are compared with the teacher's confident boxes.
    A poor teacher is often confident and wrong, and the early labels correct it. Above 100: never."""
    confident_score: Fraction
    """Score from which on a pre-drawn box counts as confident."""
    min_confident_boxes: PositiveInt
    """An answer ``empty`` is suspicious with at least this many confident boxes pre-drawn."""
    max_box_count_ratio: Annotated[float, Field(ge=1)]
    """An answer is suspicious with more boxes than this times the most that were pre-drawn on any image of its
    delivery."""


class ProviderParams(Section):
    """Where images are labeled; read by no stage."""

    kind: Annotated[str, name_or_class_path("oracle", "label_studio", "folder")]
    """``oracle`` answers from known labels, for demos and studies; ``label_studio`` and ``folder`` deliver to people. A
    class of one's own is named as ``package.module:ClassName`` (docs/guides/extend.md)."""
    url: str
    """Address of Label Studio, or directory or s3:// prefix of kind ``folder``; empty with ``oracle``. An own class
    may give it any meaning."""
    local_files_root: str
    """Label Studio only: the folder it serves local files from, absolute or relative to the campaign, which lies below.
    Without effect on images in an object store."""
    lease_days: PositiveFloat
    """Days after its delivery from which on the next round takes an unfinished image back, and may select it again.
    Until that round begins, annotators can still finish it."""
    double_annotation_frac: Fraction
    """Share of a batch that two annotators label, to measure how far they agree."""

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if not is_class_path(self.kind) and (self.kind == "oracle") != (self.url == ""):
            addresses = {"label_studio": "the address of Label Studio", "folder": "a directory or s3:// prefix"}
            expected = addresses.get(self.kind, "empty")
            raise ValueError(f"url is {self.url!r} with kind {self.kind}, expected {expected}")
        return self
