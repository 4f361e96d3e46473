"""The state of an unfinished training: where its tensors go, and what hardware it is of."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from detectron_ext.data import StepBatch
from tasks.model.checkpoint import Checkpoint, write_state
from tests.detectron_ext.conftest import batch_of, example
from tests.detectron_ext.tiny_run import new_trainer, run_steps

__all__ = ["batch_of", "example"]
ONE_CPU = {"device": "cpu", "processes": 1, "micro_batches": 1}


@dataclass
class TrainerElsewhere:
    """A trainer whose networks are on another device: ``meta`` keeps shapes only, so a wrong place shows."""

    iteration: int = 0
    loaded: dict[str, Any] = field(default_factory=dict)

    @property
    def student(self) -> Any:
        return torch.nn.Linear(1, 1, device="meta").weight

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state


def test_a_checkpoint_is_loaded_to_the_cpu_whatever_the_device_of_the_networks(tmp_path: Path) -> None:
    state = {"threshold": {"count_K": torch.ones(3)}, "optimizer": {"step": torch.tensor(2.0)}}
    stored = {"key": "k", "hardware": ONE_CPU, "hardware_changed": False, "run": state, "logs": []}
    write_state(stored, tmp_path / "checkpoint.pth")
    trainer = TrainerElsewhere()
    Checkpoint(tmp_path, "k", ONE_CPU).load(trainer)  # type: ignore[arg-type]
    assert trainer.loaded["threshold"]["count_K"].device.type == "cpu"
    assert trainer.loaded["optimizer"]["step"].device.type == "cpu"


@pytest.mark.integration
def test_other_hardware_keeps_the_work_and_is_named(
    tmp_path: Path, batch_of: Callable[[int], StepBatch], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = new_trainer()
    logs = run_steps(trainer, batch_of, 2)
    Checkpoint(tmp_path, "k", ONE_CPU).save(trainer, logs)

    same = Checkpoint(tmp_path, "k", ONE_CPU)
    assert same.load(new_trainer()) == logs
    assert not same.hardware_changed

    elsewhere = Checkpoint(tmp_path, "k", ONE_CPU | {"processes": 2})
    resumed = new_trainer()
    with caplog.at_level(logging.WARNING):
        assert elsewhere.load(resumed) == logs
    assert resumed.iteration == 2
    assert elsewhere.hardware_changed
    assert "device cpu, processes 1, micro_batches 1" in caplog.text
    assert "processes 2" in caplog.text

    elsewhere.save(resumed, logs)
    back = Checkpoint(tmp_path, "k", ONE_CPU | {"processes": 2})
    back.load(new_trainer())
    assert back.hardware_changed  # for good: the result is a mixture


@pytest.mark.integration
def test_a_checkpoint_of_other_inputs_is_not_used(tmp_path: Path, batch_of: Callable[[int], StepBatch]) -> None:
    trainer = new_trainer()
    Checkpoint(tmp_path, "k", ONE_CPU).save(trainer, run_steps(trainer, batch_of, 1))
    fresh = new_trainer()
    assert Checkpoint(tmp_path, "other", ONE_CPU).load(fresh) == []
    assert fresh.iteration == 0
