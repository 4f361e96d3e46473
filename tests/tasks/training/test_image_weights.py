"""Weights of unlabeled images: U written out, the round before, and the same scores on one process and on two."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from detectron_ext.augmentation import Example
from tasks.data import schemas
from tasks.model.detector import ImageReader, new_detector
from tasks.params import Params, load_params
from tasks.storage import files
from tasks.training import image_weights
from tasks.training.image_weights import (
    BurnInScores,
    image_weighting,
    pool_uncertainty,
    previous_metric_weights,
    previous_uncertainty,
    sampling_weights,
)
from tasks.training.run import read_unlabeled
from tests.detectron_ext.ddp_launch import launch_two_processes

REPOSITORY = Path(__file__).parents[3]
NUM_IMAGES = 7


def params(**ssl: object) -> Params:
    loaded = load_params(REPOSITORY / "params.yaml")
    small = loaded.model.model_copy(update={"fpn_channels": 32, "short_side_px": 64, "long_side_px": 96})
    return loaded.model_copy(update={"model": small, "ssl": loaded.ssl.model_copy(update=ssl)})


def test_uncertainty_is_the_weighted_sum_of_normalized_metrics() -> None:
    """Ranks 0, 1, 2 of three images give 0, 1/2, 1; the image without detections gets the others' median."""
    raw = np.array([[1.0, 5.0, 0.2], [2.0, 4.0, 0.1], [0.0, 0.0, 0.0]])
    found = pool_uncertainty(raw, np.array([False, False, True]), np.array([0.5, 0.3, 0.2]), params().scoring)
    first = 0.5 * 0.5 + 0.3 * 1.0 + 0.2 * 1.0
    second = 0.5 * 1.0 + 0.3 * 0.5 + 0.2 * 0.5
    third = 0.5 * 0.75 + 0.3 * 0.75 + 0.2 * 0.75
    assert found.tolist() == pytest.approx([first, second, third])


def test_the_first_round_has_equal_metric_weights(tmp_path: Path) -> None:
    files.write_json(tmp_path / "history.json", [])
    assert previous_metric_weights(tmp_path).tolist() == [1 / 3] * 3


def test_metric_weights_are_the_means_of_the_newest_round(tmp_path: Path) -> None:
    old = {"mean_weights": {"confidence": 1.0, "entropy": 0.0, "overlap": 0.0}}
    new = {"mean_weights": {"confidence": 0.1, "entropy": -0.3, "overlap": 0.1, "another": 0.5}}
    files.write_json(tmp_path / "history.json", [old, new])
    assert previous_metric_weights(tmp_path).tolist() == pytest.approx([0.2, -0.6, 0.2])


@pytest.mark.parametrize("standardize", [True, False])
def test_weights_are_a_sigmoid_of_the_uncertainty(standardize: bool) -> None:
    uncertainty = {"a": 0.2, "b": 0.8}
    ssl = params(standardize_image_weights=standardize, image_weighting="favor_uncertain").ssl
    z = np.array([-1.0, 1.0, 0.0]) if standardize else np.array([0.2, 0.8, 0.0])
    weights = sampling_weights(image_weighting(uncertainty, ssl), ["a", "b", "unknown"])
    assert weights.tolist() == pytest.approx((1 / (1 + np.exp(-z))).tolist())


def test_uncertainty_of_the_round_before(tmp_path: Path) -> None:
    rows = [{"image_id": "a", "uncertainty": 0.25}]
    files.write_table(tmp_path / "uncertainty.parquet", pa.Table.from_pylist(rows, schemas.PREVIOUS_UNCERTAINTY))
    assert previous_uncertainty(tmp_path) == {"a": 0.25}


def test_calibration_images_take_part_without_their_labels(tmp_path: Path) -> None:
    image = {"uri": "x.png", "width_px": 8, "height_px": 8}
    pool = pa.Table.from_pylist([image | {"image_id": "pool"}], schemas.UNLABELED)
    answer = {"image_id": "held", "boxes_xyxy": [0.0, 0.0, 4.0, 4.0], "class_ids": [0], "batch": -1}
    files.write_table(tmp_path / "unlabeled.parquet", pool)
    files.write_table(tmp_path / "calibration.parquet", pa.Table.from_pylist([image | answer], schemas.ANNOTATED))
    found = read_unlabeled(tmp_path)
    assert [example.image_id for example in found] == ["pool", "held"]
    assert [len(example.boxes_xyxy) + len(example.class_ids) for example in found] == [0, 0]


def make_images(folder: Path) -> list[Example]:
    for number in range(NUM_IMAGES):
        size = (64, 96, 3) if number % 3 else (64, 64, 3)
        pixels = np.random.default_rng(number).integers(0, 255, size, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return [Example(f"{number:016d}", f"{number}.png", np.zeros((0, 4)), np.zeros(0)) for number in range(NUM_IMAGES)]


def score(folder: Path) -> dict[str, float]:
    image_weights.CHUNK_IMAGES = 2
    settings, images = params(), make_images(folder)
    torch.manual_seed(0)
    teacher = new_detector(settings.model, 2, 0.0, folder, "cpu").eval()
    scores = BurnInScores(images, batch_size=2)
    read = ImageReader(folder, [{"uri": one.uri, "image_id": one.image_id} for one in images])
    for turn in range(scores.num_turns):
        scores.score_chunk(
            turn, teacher, read, settings.model, settings.scoring, score_threshold=0.3, mixed_precision=False
        )
    return scores.uncertainty(np.array([0.2, 0.5, 0.3]), settings.scoring)


def score_in_process(rank: int, folder: Path) -> None:
    (folder / f"images-{rank}").mkdir()
    torch.save(score(folder / f"images-{rank}"), folder / f"{rank}.pth")


@pytest.mark.integration
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    alone = score(tmp_path)
    assert len(alone) == NUM_IMAGES
    assert len(set(alone.values())) > 2
    assert launch_two_processes(score_in_process, tmp_path) == [alone, alone]
