"""What a pick turned out to be worth, by strategy, and the minutes that it took."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks.data.schemas import DETECTIONS_AT_SELECTION, with_class_names
from tasks.selection.annotation_cost import AnnotationCost
from tasks.selection.earlier_picks import EarlierPick, read_earlier_picks
from tasks.storage import files
from tests.tasks.data.test_label_store import make_label, write_batch

COST = AnnotationCost(0.25, 0.5, False, 0, 0, "")
FOCAL = (1 - 0.75) ** 1.5 * -math.log(0.75)
MISSED = 0.95**1.5 * -math.log(0.05)


def detection_row(image_id: str, **columns: Any) -> dict[str, Any]:
    """One detection of class ``a``, posterior 0.75, where the object is half as high."""
    return {
        "image_id": image_id, "boxes_xyxy": [0.0, 0.0, 10.0, 5.0], "scores": [0.75], "class_ids": [0],
        "class_probs": [0.75, 0.25], "residual_mass": 0.0, "embedding": [0.0], "model_digest": "1", "confidence": 0.5,
        "entropy": 0.5, "overlap": 0.5, "is_random_pick": False, "num_candidates": 9,
    } | columns  # fmt: skip


def test_losses_by_strategy_and_minutes_written_out(tmp_path: Path) -> None:
    box = {"category": "a", "xyxy_px": (0.0, 0.0, 10.0, 10.0)}
    far = {"category": "a", "xyxy_px": (50.0, 50.0, 60.0, 60.0)}
    write_batch(tmp_path / "labels", 0, make_label("seed", offered_batch=0))
    write_batch(
        tmp_path / "labels",
        1,
        make_label("x", boxes=[box], seconds_spent=30.0),
        make_label("y", boxes=[box, far], seconds_spent=None),
        make_label("w", boxes=[box], seconds_spent=3600.0),  # the clock ran on
        make_label("z", status="skipped", boxes=[]),
    )
    rows = [
        detection_row("w", picked_by="novelty"),
        detection_row("x", picked_by="novelty"),
        detection_row("y", picked_by="entropy", is_random_pick=True),
        detection_row("z", picked_by="novelty"),
    ]
    for number, content in ((0, []), (1, rows)):
        table = pa.Table.from_pylist(content, schema=with_class_names(DETECTIONS_AT_SELECTION, ["a"]))
        files.write_table(tmp_path / "frozen" / f"batch-{number:04d}.parquet", table)
    found = read_earlier_picks(tmp_path / "labels", tmp_path / "frozen", ["a"], 1.5, COST)
    assert found == [
        EarlierPick("w", 1, "novelty", pytest.approx(FOCAL), pytest.approx(0.5), 0.25 + 0.5),
        EarlierPick("x", 1, "novelty", pytest.approx(FOCAL), pytest.approx(0.5), 0.5),
        EarlierPick("y", 1, "random", pytest.approx(FOCAL + MISSED), pytest.approx(0.5), 0.25 + 2 * 0.5),
    ]
