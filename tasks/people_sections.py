"""The sections of ``params.yaml`` on people who label and on what their answers must be; no stage reads them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.sections import Fraction, NonNegative, Positive, PositiveInt, Section


class DoorParams(Section):
    """What a returned label must be to become source data; read by no stage.

    The four after ``clock_ahead_minutes`` make an answer *suspicious*: set aside until a person confirms it. They are
    lenient. A false alarm costs a person's time and keeps a good label, often a surprising one, out of training; a
    wrong label that slips through is one of many.
    """

    min_side_px: NonNegative
    """Boxes with a shorter side, in pixels of the original image, are refused: the marks of a slipped mouse."""
    duplicate_iou: Fraction
    """Of two boxes of one class overlapping more than this, the second is left out."""
    clock_ahead_minutes: NonNegative
    """How much later than its collection an answer may say it was finished. Beyond that a clock is wrong: the answer
    counts as finished when it was collected."""
    trusted_ap50: NonNegative
    """AP50 in percent, on the validation set, that the teacher needs before its claims are held against an answer:
    a poor teacher is often sure and wrong, and early labels are there to tell it so. Above 100: never."""
    sure_score: Fraction
    """A pre-drawn box of at least this score is one the teacher is very sure of."""
    sure_boxes: PositiveInt
    """An answer ``empty`` is suspicious where the teacher was very sure of at least so many boxes."""
    most_boxes_times: Annotated[float, Field(ge=1)]
    """An answer is suspicious with more boxes than this times the most that were pre-drawn on any image of its
    delivery."""


class ProviderParams(Section):
    """Who labels; read by no stage."""

    kind: Literal["simulated", "label_studio", "folder"]
    location: str
    """Address of Label Studio, or directory or s3:// prefix of kind ``folder``; empty with ``simulated``."""
    files_root: str
    """Label Studio only: the folder it serves local files from, absolute or relative to the campaign, which lies below.
    Without effect on images in an object store."""
    lease_days: Positive
    """An image that nobody has finished this long after it was delivered is taken back by the next round, which may
    pick it again. Until labels make a next round, people may go on with it."""
    consensus_frac: Fraction
    """Share of a batch that two annotators label, to measure how far they agree."""

    @model_validator(mode="after")
    def _place(self) -> Self:
        if (self.kind == "simulated") != (self.location == ""):
            expected = "empty" if self.kind == "simulated" else "where the annotators' work goes"
            raise ValueError(f"location is {self.location!r} with kind {self.kind}, expected {expected}")
        return self
