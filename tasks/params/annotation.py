"""The sections of ``params.yaml`` on people who label and on what their answers must be; no stage reads them."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.params.base import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section
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
    max_boxes_per_image: PositiveInt
    """An answer with more boxes is refused: some tools multiply boxes, and every later stage pays for each."""
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

    kind: Annotated[str, name_or_class_path("oracle", "label_studio", "cvat", "folder")]
    """``oracle`` answers from known labels, for demos and studies; the others deliver to people. A class of one's own
    is named as ``package.module:ClassName`` (docs/guides/extend.md)."""
    url: str
    """Address of Label Studio or CVAT, or directory or s3:// prefix of kind ``folder``; empty with ``oracle``. An own
    class may give it any meaning."""
    local_files_root: str
    """Label Studio only: the folder it serves local files from, absolute or relative to the campaign, which lies below.
    Without effect on images in an object store."""
    cvat_organization: str
    """CVAT only: short name of the organization that the project belongs to; empty: the token's user."""
    images_per_job: PositiveInt
    """CVAT only: images of a job, which one person opens, labels and finishes as a whole. A smaller number brings
    labels sooner, and more jobs to open."""
    lease_days: PositiveFloat
    """Days after its delivery from which on the next round takes an unfinished image back, and may select it again.
    Until that round begins, annotators can still finish it."""
    refresh_open: bool
    """Whether images that annotators have and nobody has begun get the rank and the pre-drawn boxes of the newest
    teacher each round (docs/method.md#open-tasks)."""
    double_annotation_frac: Fraction
    """Share of a batch that two annotators label, to measure how far they agree."""
    honeypot_frac: Annotated[float, Field(ge=0, le=0.5)]
    """Images whose label is known that are mixed into a batch, as a share of its new images; the answers measure their
    annotators (``gleaner people``) and become no labels (docs/method.md#honeypots). 0: none."""

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if not is_class_path(self.kind) and (self.kind == "oracle") != (self.url == ""):
            addresses = {
                "label_studio": "the address of Label Studio",
                "cvat": "the address of CVAT",
                "folder": "a directory or s3:// prefix",
            }
            expected = addresses.get(self.kind, "empty")
            raise ValueError(f"url is {self.url!r} with kind {self.kind}, expected {expected}")
        return self


class AnnotatorModelParams(Section):
    """Seconds that the simulated annotator of provider ``oracle`` takes (docs/method.md#annotator-model).

    A stated model of an average annotator, so that studies can compare at equal minutes; read by no stage. The values
    of params.yaml are from the literature where it has them, and assumptions elsewhere;
    ``python -m tasks.study.fit_annotator_model`` fits them to the measured answers of a campaign.
    """

    seconds_per_image: NonNegativeFloat
    """Seconds to open an image and look whether every object has a box. 7.8: median of the coverage verification task
    of Su, Deng and Fei-Fei, Crowdsourcing annotations for visual object detection, HCOMP 2012."""
    seconds_per_drawn_box: NonNegativeFloat
    """Seconds to draw a box and name its class. 25.5: median of the drawing task there. Clicking four extreme points
    takes 7 (Papadopoulos et al., Extreme clicking for efficient object annotation, ICCV 2017)."""
    seconds_per_kept_box: NonNegativeFloat
    """Seconds to see that a pre-drawn box is right. 1.6, about what a yes or no to a proposed box takes in Papadopoulos
    et al., We don't need no bounding-boxes, CVPR 2016."""
    seconds_per_moved_box: NonNegativeFloat
    """Seconds to correct the corners of a pre-drawn box. 10: an assumption, between verifying and drawing."""
    seconds_per_deleted_box: NonNegativeFloat
    """Seconds to see that a pre-drawn box shows no object, or one that has a box already, and to delete it. 2.6: an
    assumption, a verification and one key."""
    seconds_per_class_change: NonNegativeFloat
    """Seconds to choose another class for a pre-drawn box, besides keeping or moving it. 3: an assumption."""
    keep_iou: Annotated[float, Field(ge=0.5, le=1)]
    """IoU with the true box from which on a pre-drawn box is kept as it is; from 0.5 to there it is moved. 0.8: an
    assumption, a little below the IoU at which two careful people agree."""
    log_std: NonNegativeFloat
    """Standard deviation of the logarithm of an image's time: lognormal, with the sum of the seconds above as its mean.
    0.4: an assumption; 0 takes the mean itself."""
