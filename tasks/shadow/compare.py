"""Rank images of a stream by how far two models disagree about them, and by how unlike the pool they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from detectron_ext.uncertainty_metrics import average_ranks
from tasks.data.detections import read_shards
from tasks.shadow.drift import LEVEL, Drift, measure_drift, novelty_p_values

COLUMNS = ("image_id", "scores", "class_ids", "embedding", "box_disagreement", "class_disagreement")
_POOL_COLUMNS = ["scores", "class_ids", "embedding"]


@dataclass(frozen=True)
class Comparison:
    """What two models say about a stream."""

    table: pd.DataFrame
    """One row for each image, most wanted first: image_id, box_disagreement, class_disagreement, disagreement,
    p_value, num_boxes, priority, reason."""
    drift: Drift
    boxes_by_class: Mapping[str, tuple[float, float]]
    """The champion's boxes an image by class: in the pool, in the stream."""


def compare_stream(stream: pa.Table, pool: pa.Table, classes: Sequence[str], seed: int) -> Comparison:
    """Compare the stream with the pool, and the two models on the stream.

    An image's priority is the larger of its rank by disagreement and of 1 less its p-value, both in [0, 1]; the reason
    names which it is. Disagreement is the sum of both kinds (docs/method.md#committee), in objects.

    Args:
        stream: ``COLUMNS`` of the champion's detections, with the challenger as second member.
        pool: scores, class_ids and embedding of the champion's detections on the pool, at least two rows.
        classes: class names.
        seed: see ``novelty_p_values``.
    """
    table = stream.select(["image_id", "box_disagreement", "class_disagreement"]).to_pandas()
    table["disagreement"] = table["box_disagreement"] + table["class_disagreement"]
    table["p_value"] = novelty_p_values(_matrix(pool), _matrix(stream), seed) if len(table) else np.zeros(0)
    table["num_boxes"] = [len(scores) for scores in stream["scores"].to_pylist()]
    rank = (average_ranks(table["disagreement"].to_numpy()) - 1) / max(len(table) - 1, 1)
    rank[table["disagreement"] == 0] = 0.0  # agreement is no reason, whatever its rank
    table["priority"] = np.maximum(rank, 1 - table["p_value"])
    table["reason"] = [
        f"unlike the pool: {p_value:.1%} of it is as far from its nearest neighbor" if 1 - p_value > own_rank
        else f"the models disagree about {amount / 2:.1f} objects" if amount else "nothing"
        for own_rank, p_value, amount in zip(rank, table["p_value"], table["disagreement"], strict=True)
    ]  # fmt: skip
    table = table.sort_values(["priority", "image_id"], ascending=[False, True], ignore_index=True)
    by_class = {
        name: (_boxes_per_image(pool, number), _boxes_per_image(stream, number)) for number, name in enumerate(classes)
    }
    return Comparison(table, measure_drift(table["p_value"].to_numpy()), by_class)


def read_pool(infer: Path) -> pa.Table:
    """Read what ``compare_stream`` needs of the pool from the shards of a stage ``infer``."""
    return pa.concat_tables(read_shards(infer, columns=_POOL_COLUMNS))


def summary(comparison: Comparison) -> dict[str, Any]:
    """Return the figures of a comparison as a JSON document."""
    drift, table = comparison.drift, comparison.table
    return {
        "images": drift.num_images,
        "unlike_the_pool": drift.num_unlike,
        "unlike_the_pool_interval": list(drift.interval),
        "expected_frac": LEVEL,
        "drift_p_value": drift.p_value,
        "mean_disagreement_objects": float(table["disagreement"].mean() / 2) if len(table) else 0.0,
        "boxes_per_image_by_class": {
            name: {"pool": in_pool, "stream": in_stream}
            for name, (in_pool, in_stream) in comparison.boxes_by_class.items()
        },
    }


def _matrix(detections: pa.Table) -> NDArray[np.float32]:
    rows = detections["embedding"].combine_chunks()
    values = rows.flatten().to_numpy(zero_copy_only=False)
    matrix: NDArray[np.float32] = values.reshape(len(rows), -1).astype(np.float32)
    return matrix


def _boxes_per_image(detections: pa.Table, class_id: int) -> float:
    """Mean sum of the scores of a class over the images: boxes, each by its probability."""
    class_ids = detections["class_ids"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    scores = detections["scores"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    total = float(np.sum(scores[class_ids == class_id]))
    return total / max(int(detections.num_rows), 1)
