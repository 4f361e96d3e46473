"""How many processes read for a training follows the cores and the GPUs."""

import os

import pytest

from tasks.training import run


@pytest.mark.parametrize(
    ("setting", "cores", "devices", "expected"),
    [("auto", 2, 1, 1), ("auto", 1, 1, 1), ("auto", 9, 1, 8), ("auto", 9, 2, 4), ("auto", 64, 2, 16), (0, 9, 1, 0)],
)
def test_workers(setting: int | str, cores: int, devices: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    monkeypatch.setattr(run, "world_size", lambda: devices)
    assert run.num_workers(setting) == expected
