"""The sections of ``params.yaml`` behind promotion and audit; no stage reads them."""

from typing import Annotated

from pydantic import Field

from tasks.params.stages import NonNegativeFloat, PositiveInt, Section


class PromotionParams(Section):
    """The gate between candidate and champion: both on the same validation images; read by no stage."""

    bootstrap_samples: PositiveInt
    """Paired bootstrap samples over the validation images."""
    confidence_level: Annotated[float, Field(ge=0.5, lt=1)]
    """Share of the samples that must agree: for the mAP, that the candidate is not worse than tolerated; for a
    class, that it really lost. High keeps the champion longer and forgives a class more."""
    map_tolerance_points: NonNegativeFloat
    """Percent points of mAP the candidate may be below the champion in those samples."""
    class_tolerance_points: NonNegativeFloat
    """Percent points of AP one class may lose before it is looked at, however good the mean is."""


class AuditParams(Section):
    """What ``gleaner audit`` takes for a finding; read by no stage."""

    max_hamming_distance: Annotated[int, Field(ge=0, le=256)]
    """Perceptual hashes (256 bits) at most this far apart are the same picture. Measured with 48: JPEG at quality
    50, half the size, brighter by a fifth are 2 to 10 apart, 4 % cut off up to 44; strangers at least 74 on the
    demo data (digits on few photographs), 94 on BCCD. 0: only pictures that hash alike."""
