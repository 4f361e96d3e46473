"""Two processes that train as one end where one process ends that sees the whole batch."""

from pathlib import Path

import pytest
import torch

from detectron_ext.distributed import all_reduce_mean, any_rank, launch_processes, num_devices
from tests.detectron_ext.ddp_launch import (
    SCHEDULE,
    launch_two_processes,
    make_batch,
    new_trainer,
    run_collectives,
    train_rank,
    train_with_a_break_rank,
)


@pytest.mark.integration
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    alone, start = new_trainer(), new_trainer()
    logs = [alone.step(make_batch(iteration)) for iteration in range(SCHEDULE.iterations)]
    first, second = launch_two_processes(train_rank, tmp_path)
    for name, network in (("student", alone.student), ("teacher", alone.teacher)):
        state, before = network.state_dict(), start.student.state_dict()
        assert all(torch.equal(first[name][key], second[name][key]) for key in state)
        # As a whole: Adam turns a gradient of almost 0, whose sign is rounding, into a full step of one weight.
        apart = torch.cat([(first[name][key] - state[key]).flatten() for key in state]).norm()
        moved = torch.cat([(state[key] - before[key]).flatten() for key in state]).norm()
        assert apart < 0.05 * moved
    losses = torch.tensor([[entry.loss_sup, entry.loss_unsup, entry.mean_image_weight] for entry in logs])
    assert (losses[1:, 1] > 0).all()
    # The first step to rounding; later ones amplify it.
    torch.testing.assert_close(first["losses"][:2], losses[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first["losses"], losses, rtol=5e-3, atol=1e-5)
    assert torch.equal(first["losses"], second["losses"])
    assert torch.equal(first["scores"], second["scores"])


@pytest.mark.integration
def test_two_processes_go_on_after_a_kill_as_if_there_had_been_none(tmp_path: Path) -> None:
    for result in launch_two_processes(train_with_a_break_rank, tmp_path):
        whole, with_a_break = result["losses"]
        assert (whole[1:] > 0).all()
        assert torch.equal(whole, with_a_break)
        teacher, resumed_teacher = result["teachers"]
        assert all(torch.equal(teacher[key], resumed_teacher[key]) for key in teacher)


@pytest.mark.integration
def test_processes_agree(tmp_path: Path) -> None:
    for result in launch_two_processes(run_collectives, tmp_path):
        assert result["mean"].tolist() == [1.5, 3.0]
        assert result["flags"].tolist() == [True, False]


def test_alone_nothing_is_asked_of_anybody() -> None:
    values = torch.tensor([1.0, 2.0])
    assert all_reduce_mean(values) is values
    assert any_rank(True)
    assert not any_rank(False)


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="several devices: it would start processes")
def test_one_device_needs_no_process_of_its_own() -> None:
    seen: list[str] = []
    assert num_devices() == 1
    launch_processes(seen.append, "here")
    assert seen == ["here"]
