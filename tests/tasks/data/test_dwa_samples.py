"""Each image is held against the detections of the delivery it was offered in, once, with its newest answer."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.data.dwa_samples import DwaSample, batch_samples
from tasks.data.schemas import DETECTIONS_AT_SELECTION, with_class_names
from tasks.runtime.errors import UserError
from tasks.storage import files
from tests.tasks.data.test_label_store import make_label, write_batch

ONE = np.ones(1)


def write_detections(folder: Path, batch: int, **scores: float) -> None:
    """One detection of class ``a`` an image, of the given score."""
    rows = [
        {
            "image_id": image_id,
            "boxes_xyxy": [1.0, 1.0, 9.0, 9.0],
            "scores": [score],
            "class_ids": [0],
            "class_probs": [score, 1 - score],
            "residual_mass": 0.25,
            "embedding": [0.0],
            "model_digest": str(batch),
            "confidence": score,
            "entropy": 0.5,
            "overlap": 0.5,
            "is_random_pick": image_id == "y",
            "num_candidates": 9,
        }
        for image_id, score in scores.items()
    ]
    schema = with_class_names(DETECTIONS_AT_SELECTION, ["a"])
    files.write_table(folder / f"batch-{batch:04d}.parquet", pa.Table.from_pylist(rows, schema=schema))


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


def test_a_sample_knows_whether_it_was_drawn(campaign: Path) -> None:
    found = samples_by_id(campaign)
    assert {name: pair.is_random_pick for name, pair in found.items()} == {"x": False, "y": True, "z": False}


def test_the_newest_answer_is_the_truth(campaign: Path) -> None:
    """x now has a narrow box, which the frozen one misses; y agrees with the teacher."""
    found = samples_by_id(campaign)
    assert found["x"].losses.weighted(ONE, ONE) > found["y"].losses.weighted(ONE, ONE)


def test_a_checked_label_is_still_the_sample_of_its_pick(campaign: Path) -> None:
    """Not one of the batch that asked for the check: that teacher had been trained on the image."""
    write_detections(campaign / "frozen", 4, q=0.5)  # of what was picked then; no detections are stored of checks
    write_batch(
        campaign / "labels",
        4,
        make_label("y", 3, offered_batch=4, checks_batch=2),
        make_label("seed", 3, offered_batch=4, checks_batch=0),
    )
    found = samples_by_id(campaign)
    assert {name: pair.group for name, pair in found.items()} == {"x": 1, "y": 1, "z": 2}
    assert found["y"].is_random_pick
    assert found["y"].losses.weighted(ONE, ONE) > found["z"].losses.weighted(ONE, ONE)  # the corrected label counts


def test_the_window_is_of_offers(campaign: Path) -> None:
    assert set(samples_by_id(campaign, window=2)) == {"z"}


def test_an_image_somebody_now_skips_gives_no_pair(campaign: Path) -> None:
    write_batch(campaign / "labels", 4, make_label("x", status="skipped", boxes=[]))
    assert set(samples_by_id(campaign)) == {"y", "z"}


def write_two_class_detections(folder: Path, classes: list[str] | None) -> None:
    """One detection of index 1 at 0.6 in image x, made under the class list ``classes``."""
    row = {
        "image_id": "x",
        "boxes_xyxy": [1.0, 1.0, 9.0, 9.0],
        "scores": [0.625],
        "class_ids": [1],
        "class_probs": [0.25, 0.625, 0.125],
        "residual_mass": 0.25,
        "embedding": [0.0],
        "model_digest": "1",
        "confidence": 0.5,
        "entropy": 0.5,
        "overlap": 0.5,
        "is_random_pick": False,
        "num_candidates": 9,
    }
    schema = DETECTIONS_AT_SELECTION if classes is None else with_class_names(DETECTIONS_AT_SELECTION, classes)
    files.write_table(folder / "batch-0001.parquet", pa.Table.from_pylist([row], schema=schema))


@pytest.fixture
def one_label(tmp_path: Path) -> Path:
    """Image x, offered in batch 1, has a box of class ``a``."""
    write_batch(tmp_path / "labels", 0, make_label("seed", offered_batch=0, status="empty", boxes=[]))
    write_batch(tmp_path / "labels", 1, make_label("x"))
    write_detections(tmp_path / "frozen", 0)
    return tmp_path


@pytest.mark.parametrize(
    ("stored", "classes", "probability_of_a"),
    [
        (["b", "a"], ["b", "a"], 0.625),
        (["b", "a"], ["a", "b"], 0.625),
        (["b", "a"], ["new", "a", "b"], 0.625),
        (["gone", "a"], ["a"], 0.625),
        (["a", "b"], ["b", "a"], 0.25),
    ],
)
def test_detections_of_another_class_list_are_translated_by_name(
    one_label: Path, stored: list[str], classes: list[str], probability_of_a: float
) -> None:
    write_two_class_detections(one_label / "frozen", stored)
    [sample] = batch_samples(one_label / "labels", one_label / "frozen", classes, 9, 1.5)
    expected = -((1 - probability_of_a) ** 1.5) * np.log(probability_of_a)
    assert sample.losses.positive_K[classes.index("a")] == pytest.approx(expected)
    assert len(sample.losses.positive_K) == len(classes)
    assert len(sample.features) == 15 + 2 * len(classes)


def test_the_probability_of_a_class_that_is_gone_is_background(one_label: Path) -> None:
    write_two_class_detections(one_label / "frozen", ["gone", "a"])
    write_batch(one_label / "labels", 1, make_label("x", status="empty", boxes=[]))
    [sample] = batch_samples(one_label / "labels", one_label / "frozen", ["a"], 9, 1.5)
    assert sample.losses.claimed_background_K == pytest.approx([-((1 - 0.375) ** 1.5) * np.log(0.375)])


@pytest.mark.parametrize("stored", [["a", "gone"], ["b", "c"]])
def test_samples_that_cannot_be_translated_are_left_out(
    one_label: Path, stored: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The teacher predicted a class that is gone, or did not know the class of the label."""
    write_two_class_detections(one_label / "frozen", stored)
    assert batch_samples(one_label / "labels", one_label / "frozen", ["a", "b", "c"], 9, 1.5) == []
    assert "class list changed: 1" in caplog.text


def test_detections_without_class_names_are_refused(one_label: Path) -> None:
    write_two_class_detections(one_label / "frozen", None)
    with pytest.raises(UserError, match=r"batch-0001\.parquet: the class names are missing"):
        batch_samples(one_label / "labels", one_label / "frozen", ["a", "b"], 9, 1.5)
