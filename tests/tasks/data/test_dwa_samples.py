"""Each image is held against the detections of the delivery it was offered in, once, with its newest answer."""

from pathlib import Path

import pyarrow as pa
import pytest

from tasks.data.dwa_samples import DwaSample, batch_samples
from tasks.data.schemas import DETECTIONS_AT_SELECTION
from tasks.storage import files
from tests.tasks.data.test_label_store import make_label, write_batch


def write_detections(folder: Path, batch: int, **scores: float) -> None:
    """One detection of class ``a`` an image, of the given score."""
    rows = [
        {
            "image_id": image_id,
            "boxes_xyxy": [1.0, 1.0, 9.0, 9.0],
            "scores": [score],
            "class_ids": [0],
            "class_probs": [score, 1 - score],
            "embedding": [0.0],
            "model_digest": str(batch),
            "confidence": score,
            "entropy": 0.5,
            "overlap": 0.5,
        }
        for image_id, score in scores.items()
    ]
    files.write_table(folder / f"batch-{batch:04d}.parquet", pa.Table.from_pylist(rows, schema=DETECTIONS_AT_SELECTION))


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    """x and y offered in batch 1, z in batch 2; y came back late, x was changed late."""
    write_batch(tmp_path / "labels", 0, make_label("seed", offered_batch=0))
    write_batch(tmp_path / "labels", 1, make_label("x"), leased={"y": 1})
    write_batch(tmp_path / "labels", 2, make_label("z", offered_batch=2), make_label("y"))
    write_batch(tmp_path / "labels", 3, make_label("x", 3))
    write_detections(tmp_path / "frozen", 0)
    write_detections(tmp_path / "frozen", 1, x=0.9, y=0.8)
    write_detections(tmp_path / "frozen", 2, z=0.7)
    write_detections(tmp_path / "frozen", 3, x=0.1)  # of a teacher that had learned from x; nobody was asked again
    return tmp_path


def samples_by_id(campaign: Path, window: int = 9) -> dict[str, DwaSample]:
    found = batch_samples(campaign / "labels", campaign / "frozen", ["a"], window, 1.5)
    assert len({pair.image_id for pair in found}) == len(found)
    return {pair.image_id: pair for pair in found}


def test_a_late_or_changed_answer_meets_the_detections_of_its_own_offer(campaign: Path) -> None:
    found = samples_by_id(campaign)
    assert {name: pair.group for name, pair in found.items()} == {"x": 1, "y": 1, "z": 2}
    assert {name: pair.metrics[0] for name, pair in found.items()} == pytest.approx({"x": 0.9, "y": 0.8, "z": 0.7})


def test_the_newest_answer_is_the_truth(campaign: Path) -> None:
    """x now has a narrow box, which the frozen one misses; y agrees with the teacher."""
    found = samples_by_id(campaign)
    assert found["x"].losses.total_K.sum() > found["y"].losses.total_K.sum()


def test_the_window_is_of_offers(campaign: Path) -> None:
    assert set(samples_by_id(campaign, window=2)) == {"z"}


def test_an_image_somebody_now_skips_gives_no_pair(campaign: Path) -> None:
    write_batch(campaign / "labels", 4, make_label("x", status="skipped", boxes=[]))
    assert set(samples_by_id(campaign)) == {"y", "z"}
