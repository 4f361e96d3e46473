"""The section of ``params.yaml`` behind ``gleaner autolabel``; no stage reads it."""

from typing import Annotated

from pydantic import Field

from tasks.params.base import NonNegativeInt, PositiveInt, Section

_Share = Annotated[float, Field(gt=0, lt=1)]


class AutolabelParams(Section):
    """Which boxes and images ``gleaner autolabel`` accepts without a person (docs/method.md#autolabel)."""

    wanted_precision: _Share
    """Share of right boxes that is promised of the accepted boxes of each class."""
    box_iou: Annotated[float, Field(gt=0, le=1)]
    """A detection is right where it has at least this IoU with an object of its class that no better one has."""
    max_wrong_images_frac: _Share
    """Share of the images accepted whole in which a box is wrong, or an object is missing, at most."""
    confidence_level: Annotated[float, Field(ge=0.5, lt=1)]
    """Probability, for each class and for the images accepted whole, that a promise holds."""
    min_calibration_images: PositiveInt
    """With fewer labeled images that were drawn at random and that the model has not seen, nothing is accepted."""
    max_crowd_boxes_frac: Annotated[float, Field(ge=0, lt=1)]
    """Of each class, the boxes in the most crowded images are left to people, up to this share of the boxes: an image
    with very many boxes of one class counts for so much that few labeled images could promise nothing with it."""
    audit_boxes: NonNegativeInt
    """Accepted boxes, drawn at random, that people check. 0: none."""
    audit_images: NonNegativeInt
    """Images accepted whole, drawn at random, that people check. 0: none."""
    audit_confidence_level: Annotated[float, Field(ge=0.5, lt=1)]
    """Of the exact interval of what the audit found."""
