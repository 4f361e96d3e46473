"""Pretraining inside the stage train: killed and resumed, taken over by the next round, stopped and refused."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from detectron_ext import pretraining
from detectron_ext.augmentation import AugmentationConfig
from detectron_ext.meta_arch import PerImageRCNN, build_detector
from tasks.data import schemas
from tasks.model.detector import ImageReader, to_examples
from tasks.params import StageParams, load_stage_params
from tasks.params.template import render_params
from tasks.runtime.errors import GuardRailError, UserError
from tasks.storage import files
from tasks.train import train_worker
from tasks.training.pretraining import Pretraining, PretrainingCheckpoint, pretrain_backbone
from tests.detectron_ext.tiny import TINY
from tests.tasks.model.test_launch import REPOSITORY, SECTIONS, SMALL, workspace

__all__ = ["workspace"]
pytestmark = pytest.mark.integration
HARDWARE = {"device": "cpu", "processes": 1, "micro_batches": 1}
PRETRAINED = [
    *SMALL,
    "train.iterations=1",
    "ssl.enabled=false",
    "train.pretrain_iterations=2",
    "train.pretrain_batch_size=2",
    "train.checkpoint_every_iterations=1",
]


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def untrained() -> PerImageRCNN:
    torch.manual_seed(0)
    return build_detector(TINY, "cpu")


def read_params(workspace: Path, *overrides: str) -> StageParams:
    text = (REPOSITORY / "params.yaml").read_text()
    settings = [*PRETRAINED, *overrides]
    (workspace / "params.yaml").write_text(render_params(text, classes=["square", "disc"], overrides=settings))
    return load_stage_params(workspace / "params.yaml", *SECTIONS)


def pretrain(workspace: Path, detector: PerImageRCNN, params: StageParams, scratch: str = "scratch") -> Pretraining:
    table = files.read_table(workspace / "assembled" / "labeled.parquet", schemas.ANNOTATED)
    images = to_examples(table)
    read = ImageReader(workspace, table.select(["uri", "image_id"]).to_pylist())
    augmentation = AugmentationConfig(64, 96, **params.augmentation.model_dump())
    return pretrain_backbone(detector, images, read, augmentation, params, workspace / scratch, HARDWARE)


def test_a_killed_pretraining_ends_as_if_it_had_not_been_and_serves_the_next_round(
    workspace: Path, untrained: PerImageRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = read_params(workspace)
    monkeypatch.setattr(PretrainingCheckpoint, "exit_on_signal", lambda self: None)
    whole, resumed, taken_over = (deepcopy(untrained) for _ in range(3))
    expected = pretrain(workspace, whole, params, scratch="other")
    save = PretrainingCheckpoint.save

    def save_and_die(self: PretrainingCheckpoint, *state: Any) -> None:
        save(self, *state)
        raise Killed

    monkeypatch.setattr(PretrainingCheckpoint, "save", save_and_die)
    with pytest.raises(Killed):
        pretrain(workspace, deepcopy(untrained), params)
    monkeypatch.setattr(PretrainingCheckpoint, "save", save)
    assert pretrain(workspace, resumed, params) == expected
    monkeypatch.delattr(pretraining.BackbonePretrainer, "step")
    assert pretrain(workspace, taken_over, params) == expected
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        assert torch.equal(tensor, taken_over.state_dict()[name]), name


def train(workspace: Path, params: StageParams, out: str) -> None:
    train_worker(params, workspace, *(workspace / name for name in ("assembled", "previous", "scratch", out)))


def test_the_first_round_is_pretrained_and_one_that_starts_from_its_teacher_is_not(workspace: Path) -> None:
    params = read_params(workspace)
    train(workspace, params, "first")
    summary = files.read_json(workspace / "first" / "summary.json")["pretraining"]
    assert (summary["iterations"], summary["images"], summary["batch_size"]) == (2, 5, 2)
    losses = pq.read_table(workspace / "first" / "pretraining.parquet")["loss"].to_pylist()
    assert [summary["first_loss"], summary["last_loss"]] == pytest.approx(losses, abs=1e-6)

    (workspace / "first" / "teacher.pth").rename(workspace / "previous" / "teacher.pth")
    train(workspace, params, "second")
    reason = "the round starts from the teacher of the round before"
    found = files.read_json(workspace / "second" / "summary.json")
    assert found["pretraining"] == {"iterations": 0, "reason": reason}


def test_collapse_stops_the_stage_as_divergence_does(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "MIN_SPREAD", 2.0)
    with pytest.raises(GuardRailError, match=r"train: spread of .+ expected at least 2: .+Lower train\.pretrain_learn"):
        train(workspace, read_params(workspace), "out")
    assert GuardRailError.exit_code == 3
    assert not (workspace / "out").exists()


def test_weights_of_a_whole_detector_are_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"backbone.bottom_up.x": torch.zeros(1), "roi_heads.y": torch.zeros(1)}, workspace / "weights.pth")
    params = read_params(workspace, "model.pretrained_weights=weights.pth")
    monkeypatch.setattr("tasks.train._new_student", lambda *_: None)
    with pytest.raises(UserError, match=r"expected 0 where model\.pretrained_weights are of a whole detector"):
        train(workspace, params, "out")
