"""Each image is held against the detections of the delivery it was offered in, once, with its newest answer."""

from pathlib import Path

import pyarrow as pa
import pytest

from tasks import files
from tasks.contracts import FROZEN
from tasks.pairs import Pair, batch_pairs
from tests.tasks.test_label_store import label, write


def freeze(folder: Path, batch: int, **scores: float) -> None:
    """One detection of class ``a`` an image, of the given score."""
    rows = [
        {
            "image_id": image_id,
            "boxes_xyxy": [1.0, 1.0, 9.0, 9.0],
            "scores": [score],
            "labels": [0],
            "posteriors": [score, 1 - score],
            "embedding": [0.0],
            "model_digest": str(batch),
            "confidence": score,
            "entropy": 0.5,
            "overlap": 0.5,
        }
        for image_id, score in scores.items()
    ]
    files.write_table(folder / f"batch-{batch:04d}.parquet", pa.Table.from_pylist(rows, schema=FROZEN))


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    """x and y offered in batch 1, z in batch 2; y came back late, x was changed late."""
    write(tmp_path / "labels", 0, label("seed", offered_in=0))
    write(tmp_path / "labels", 1, label("x"), leased={"y": 1})
    write(tmp_path / "labels", 2, label("z", offered_in=2), label("y"))
    write(tmp_path / "labels", 3, label("x", 3))
    freeze(tmp_path / "frozen", 0)
    freeze(tmp_path / "frozen", 1, x=0.9, y=0.8)
    freeze(tmp_path / "frozen", 2, z=0.7)
    freeze(tmp_path / "frozen", 3, x=0.1)  # of a teacher that had learned from x; nobody was asked again
    return tmp_path


def pairs(campaign: Path, window: int = 9) -> dict[str, Pair]:
    found = batch_pairs(campaign / "labels", campaign / "frozen", ["a"], window, 1.5)
    assert len({pair.image_id for pair in found}) == len(found)
    return {pair.image_id: pair for pair in found}


def test_a_late_or_changed_answer_meets_the_detections_of_its_own_offer(campaign: Path) -> None:
    found = pairs(campaign)
    assert {name: pair.group for name, pair in found.items()} == {"x": 1, "y": 1, "z": 2}
    assert {name: pair.metrics[0] for name, pair in found.items()} == pytest.approx({"x": 0.9, "y": 0.8, "z": 0.7})


def test_the_newest_answer_is_the_truth(campaign: Path) -> None:
    """x now has a narrow box, which the frozen one misses; y agrees with the teacher."""
    found = pairs(campaign)
    assert found["x"].losses.total_K.sum() > found["y"].losses.total_K.sum()


def test_the_window_is_of_offers(campaign: Path) -> None:
    assert set(pairs(campaign, window=2)) == {"z"}


def test_an_image_somebody_now_skips_gives_no_pair(campaign: Path) -> None:
    write(campaign / "labels", 4, label("x", status="skipped", boxes=[]))
    assert set(pairs(campaign)) == {"y", "z"}
