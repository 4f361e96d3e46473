"""Weights of the unlabeled images: from the uncertainty of the round before, or measured at the end of burn-in."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detectron_ext.augmentation import Example
from detectron_ext.distributed import all_gather, rank, world_size
from detectron_ext.inference import Detections
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.trainer import ImageWeighting
from detectron_ext.uncertainty_metrics import (
    Floats,
    UncertaintyMetrics,
    impute_no_detections,
    normalize,
    uncertainty,
    uncertainty_metrics,
)
from tasks.data.schemas import PREVIOUS_UNCERTAINTY
from tasks.model.detector import ImageReader, detect_all
from tasks.params.stages import ScoringParams
from tasks.params.training import ModelParams, SslParams
from tasks.storage import files

CHUNK_IMAGES = 64
"""Images that one process scores before it asks whether to stop; the same for any number of processes."""


def image_weighting(uncertainty_of: Mapping[str, float], ssl: SslParams) -> ImageWeighting:
    """Form z_j from U_j (docs/method.md#eq-17); an image without U_j gets z_j = 0."""
    z = np.array(list(uncertainty_of.values()), dtype=np.float64)
    if ssl.standardize_image_weights and len(z):
        z = (z - z.mean()) / max(float(z.std()), 1e-6)
    return ImageWeighting(dict(zip(uncertainty_of, z.tolist(), strict=True)), ssl.image_weighting)


def previous_uncertainty(warm_start: Path) -> dict[str, float]:
    """Read U_j of the round before by image id; empty in the first round."""
    table = files.read_table(warm_start / "uncertainty.parquet", PREVIOUS_UNCERTAINTY)
    return dict(zip(table["image_id"].to_pylist(), table["uncertainty"].to_pylist(), strict=True))


def previous_metric_weights(warm_start: Path) -> Floats:
    """Return the mean metric weights of the round before, (3,), absolute sum 1; equal ones in the first round.

    A metric that training does not compute is left out, and the weights of the others are scaled up.
    """
    history = files.read_json(warm_start / "history.json")
    means = history[-1]["mean_weights"] if history else {}
    weights_3 = np.array([means.get(name, 0.0) for name in UncertaintyMetrics._fields], dtype=np.float64)
    total = float(np.abs(weights_3).sum())
    return (
        weights_3 / total
        if total > 0
        else np.full(len(UncertaintyMetrics._fields), 1 / len(UncertaintyMetrics._fields))
    )


class BurnInScores:
    """Scores unlabeled images chunk by chunk with the teacher at the end of burn-in (docs/method.md#burn-in-weights).

    All processes call ``score_chunk`` equally often, each scores its chunks, and all get the same result.
    """

    def __init__(self, images: Sequence[Example], batch_size: int) -> None:
        """Begin without a score.

        Args:
            images: those to score, the same on every process.
            batch_size: images per forward pass.
        """
        self._images, self._batch_size = images, batch_size
        chunks = [images[first : first + CHUNK_IMAGES] for first in range(0, len(images), CHUNK_IMAGES)]
        self._own_chunks = chunks[rank() :: world_size()]
        self.num_turns = -(-len(chunks) // world_size())
        self._raw: dict[str, tuple[tuple[float, float, float], bool]] = {}

    def score_chunk(
        self,
        turn: int,
        teacher: PerImageRCNN,
        read: ImageReader,
        model: ModelParams,
        scoring: ScoringParams,
        *,
        score_threshold: float,
        mixed_precision: bool,
    ) -> None:
        """Compute the raw metrics of this process's chunk number ``turn``; without effect where it has none left."""
        if turn >= len(self._own_chunks):
            return
        found = detect_all(
            [teacher],
            self._own_chunks[turn],
            lambda image: read(image.uri),
            model,
            batch_size=self._batch_size,
            mixed_precision=mixed_precision,
        )
        for image, [detections] in found:
            self._raw[image.image_id] = _raw_metrics(detections.filter_by_score(score_threshold), scoring)

    def uncertainty(self, metric_weights_3: Floats, scoring: ScoringParams) -> dict[str, float]:
        """Return U_j of all scored images by image id, normalized over these images (docs/method.md#eq-15)."""
        raw = {image_id: row for part in all_gather(self._raw) for image_id, row in part.items()}
        ids = [image.image_id for image in self._images]
        raw_P3 = np.array([raw[image_id][0] for image_id in ids], dtype=np.float64).reshape(
            -1, len(UncertaintyMetrics._fields)
        )
        no_detections_P = np.array([raw[image_id][1] for image_id in ids], dtype=bool)
        values_P = pool_uncertainty(raw_P3, no_detections_P, metric_weights_3, scoring)
        return dict(zip(ids, values_P.tolist(), strict=True))


def _raw_metrics(found: Detections, scoring: ScoringParams) -> tuple[tuple[float, float, float], bool]:
    """Return confidence, entropy and overlap of one image, and whether it has no detection."""
    metrics = uncertainty_metrics(
        found.boxes_xyxy,
        found.scores,
        found.class_probs,
        confidence_mode=scoring.confidence,
        entropy_mode=scoring.entropy,
    )
    return (metrics.confidence, metrics.entropy, metrics.overlap), len(found.scores) == 0


def pool_uncertainty(
    raw_P3: Floats, no_detections_P: NDArray[np.bool_], metric_weights_3: Floats, scoring: ScoringParams
) -> Floats:
    """Compute U of P images from their raw metrics and one set of metric weights, (P,) (docs/method.md#eq-15)."""
    columns = [
        impute_no_detections(
            normalize(raw_P3[:, index], scoring.normalize), no_detections_P, scoring.no_detection_score
        )
        for index in range(raw_P3.shape[1])
    ]
    return uncertainty(np.stack(columns, axis=1), metric_weights_3[None, :])


def sampling_weights(weighting: ImageWeighting, image_ids: Sequence[str]) -> NDArray[np.float64]:
    """Return W_j of every image, in the order given (docs/method.md#eq-17)."""
    weight_N = weighting.weights_for(list(image_ids), torch.device("cpu"))
    return np.asarray(weight_N.double().numpy())
