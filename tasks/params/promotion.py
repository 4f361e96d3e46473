"""The sections of ``params.yaml`` behind promotion, audit and export; no stage reads them."""

from typing import Annotated

from pydantic import Field

from tasks.params.base import NonNegativeFloat, NonNegativeInt, PositiveInt, Section


class PromotionParams(Section):
    """When a candidate replaces the champion (docs/method.md#promotion); read by no stage."""

    bootstrap_samples: PositiveInt
    """Paired bootstrap samples over the validation images."""
    confidence_level: Annotated[float, Field(ge=0.5, lt=1)]
    """Share kappa of the samples that must agree (docs/method.md#eq-24): for the mAP, that the candidate is not worse
    than tolerated; for a class, that its AP fell. A high value keeps the champion longer and tolerates more losses of
    single classes."""
    map_tolerance_points: NonNegativeFloat
    """Points of mAP (percent) by which the candidate may be below the champion in a sample (docs/method.md#eq-24)."""
    class_tolerance_points: NonNegativeFloat
    """Points of AP (percent) that one class may lose, whatever the mAP is."""


class AuditParams(Section):
    """When ``gleaner audit`` reports a finding; read by no stage."""

    max_hamming_distance: Annotated[int, Field(ge=0, le=256)]
    """Perceptual hashes (256 bits) at most this far apart are the same picture. Measured with 48: JPEG at quality
    50, half the size, brighter by a fifth are 2 to 10 apart, 4 % cut off up to 44; strangers at least 74 on the
    demo data (digits on few photographs), 94 on BCCD. 0: only pictures that hash alike."""


class ExportParams(Section):
    """How ``gleaner export`` makes and checks a detector for other machines; read by no stage."""

    map_tolerance_points: NonNegativeFloat
    """Points of mAP (percent) on the validation images that an export may lose; with more it is refused."""
    calibration_images: PositiveInt
    """Images of the calibration set, at most, from which int8 takes the ranges of its values."""
    timed_images: PositiveInt
    """Validation images, at most, that latency is measured on."""
    prune_importance_images: PositiveInt
    """Labeled training images, at least, from which ``--prune`` takes the importance of channels; rounded up to whole
    batches of ``train.labeled_batch_size``. An image may come more than once, in another view."""
    prune_finetune_iterations: NonNegativeInt
    """Optimizer steps after ``--prune``, with the learning rates of ``train``, on people's labels and on detections
    from ``ssl.pseudo_label_threshold`` on. 0: the network stays as the removal left it."""
