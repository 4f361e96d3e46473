"""The sections of ``params.yaml`` on people who label and on what their answers must be; no stage reads them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.params.stages import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section


class LabelValidationParams(Section):
    """What a returned label must be to become source data; read by no stage.

    The four after ``max_clock_skew_minutes`` make an answer *suspicious*: set aside until a person confirms it. They are
    lenient. A false alarm costs a person's time and keeps a good label, often a surprising one, out of training; a
    wrong label that slips through is one of many.
    """

    min_box_side_px: NonNegativeFloat
    """Boxes with a shorter side, in pixels of the original image, are refused: the marks of a slipped mouse."""
    duplicate_iou_threshold: Fraction
    """Of two boxes of one class overlapping more than this, the second is left out."""
    max_clock_skew_minutes: NonNegativeFloat
    """How much later than its collection an answer may say it was finished. Beyond that a clock is wrong: the answer
    counts as finished when it was collected."""
    min_teacher_ap50: NonNegativeFloat
    """AP50 in percent, on the validation set, that the teacher needs before its claims are held against an answer:
    a poor teacher is often sure and wrong, and early labels are there to tell it so. Above 100: never."""
    confident_score: Fraction
    """A pre-drawn box of at least this score is one the teacher is very sure of."""
    min_confident_boxes: PositiveInt
    """An answer ``empty`` is suspicious where the teacher was very sure of at least so many boxes."""
    max_box_count_ratio: Annotated[float, Field(ge=1)]
    """An answer is suspicious with more boxes than this times the most that were pre-drawn on any image of its
    delivery."""


class ProviderParams(Section):
    """Who labels; read by no stage."""

    kind: Literal["oracle", "label_studio", "folder"]
    url: str
    """Address of Label Studio, or directory or s3:// prefix of kind ``folder``; empty with ``oracle``."""
    local_files_root: str
    """Label Studio only: the folder it serves local files from, absolute or relative to the campaign, which lies below.
    Without effect on images in an object store."""
    lease_days: PositiveFloat
    """An image that nobody has finished this long after it was delivered is taken back by the next round, which may
    pick it again. Until labels make a next round, people may go on with it."""
    double_annotation_frac: Fraction
    """Share of a batch that two annotators label, to measure how far they agree."""

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if (self.kind == "oracle") != (self.url == ""):
            addresses = {"label_studio": "the address of Label Studio", "folder": "a directory or s3:// prefix"}
            expected = addresses.get(self.kind, "empty")
            raise ValueError(f"url is {self.url!r} with kind {self.kind}, expected {expected}")
        return self
