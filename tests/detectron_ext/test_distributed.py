"""Two processes that train as one end where one process ends that sees the whole batch."""

from pathlib import Path

import pytest
import torch

from detectron_ext.distributed import any_process, mean_over_processes, num_devices, run_on_all_devices
from tests.detectron_ext.in_two_processes import (
    SCHEDULE,
    batch_of,
    in_two_processes,
    new_run,
    talk,
    train_a_share,
)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    alone, start = new_run(), new_run()
    logs = [alone.step(batch_of(iteration)) for iteration in range(SCHEDULE.iterations)]
    first, second = in_two_processes(train_a_share, tmp_path)
    for name, network in (("student", alone.student), ("teacher", alone.teacher)):
        state, before = network.state_dict(), start.student.state_dict()
        assert all(torch.equal(first[name][key], second[name][key]) for key in state)
        # As a whole: Adam turns a gradient of almost 0, whose sign is rounding, into a full step of one weight.
        apart = torch.cat([(first[name][key] - state[key]).flatten() for key in state]).norm()
        moved = torch.cat([(state[key] - before[key]).flatten() for key in state]).norm()
        assert apart < 0.05 * moved
    losses = torch.tensor([[entry.loss_sup, entry.loss_unsup, entry.mean_image_weight] for entry in logs])
    assert (losses[1:, 1] > 0).all()
    torch.testing.assert_close(first["losses"], losses, rtol=1e-3, atol=1e-5)
    assert torch.equal(first["losses"], second["losses"])
    assert torch.equal(first["scores"], second["scores"])


@pytest.mark.slow
def test_processes_agree(tmp_path: Path) -> None:
    for told in in_two_processes(talk, tmp_path):
        assert told["mean"].tolist() == [1.5, 3.0]
        assert told["flags"].tolist() == [True, False]


def test_alone_nothing_is_asked_of_anybody() -> None:
    values = torch.tensor([1.0, 2.0])
    assert mean_over_processes(values) is values
    assert any_process(True)
    assert not any_process(False)


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="several devices: it would start processes")
def test_one_device_needs_no_process_of_its_own() -> None:
    seen: list[str] = []
    assert num_devices() == 1
    run_on_all_devices(seen.append, "here")
    assert seen == ["here"]
