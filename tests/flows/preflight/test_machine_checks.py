"""Checks on the machine: where a machine cannot be broken, what it reports is replaced at its edge."""

import os
import shutil
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.preflight import machine
from flows.preflight.runner import CheckContext
from tasks.data.paths import Workspace
from tasks.storage import files

Usage = namedtuple("Usage", "total used free")
GIB = 1 << 30


def write_program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("check", [machine.check_disk, machine.check_clock, machine.check_versions])
def test_a_healthy_campaign_passes_or_warns(small_campaign: Workspace, check: Any) -> None:
    assert check(CheckContext(small_campaign)).state in ("pass", "warn")


@pytest.mark.parametrize(("free", "state"), [(GIB - 1, "fail"), (3 * GIB, "warn"), (100 * GIB, "pass")])
def test_disk_before_the_first_round(
    small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(200 * GIB, 0, free))
    assert machine.check_disk(CheckContext(small_campaign)).state == state


@pytest.mark.integration
def test_a_rounds_size_follows_from_the_last_one(after_two_rounds: Workspace) -> None:
    teacher = (after_two_rounds.derived("train") / "teacher.pth").stat().st_size
    made = sum(path.stat().st_size for path in (after_two_rounds.root / "derived").rglob("*") if path.is_file())
    needed = machine.estimate_round_bytes(after_two_rounds)
    assert needed >= 6 * teacher
    assert needed == pytest.approx(made + 6 * teacher, rel=0.2)


def test_a_cache_on_another_disk_is_looked_at(
    small_campaign: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other disk"
    other.mkdir()
    with (small_campaign.root / ".dvc" / "config.local").open("w") as file:
        file.write(f"[cache]\n    dir = {other}\n['remote \"store\"']\n    url = /nowhere\n")
    assert machine.dvc_cache_dir(small_campaign) == other
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(GIB, 0, 100 if place == other else 90 * GIB))
    finding = machine.check_disk(CheckContext(small_campaign))
    assert (finding.state, str(other) in finding.message) == ("fail", True)


@pytest.mark.parametrize(("available", "state"), [(GIB // 2, "fail"), (2 * GIB, "warn"), (9 * GIB, "pass")])
def test_memory(small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch, available: int, state: str) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr(machine, "_cgroup_available_bytes", lambda: [])
    assert machine.check_memory(CheckContext(small_campaign)).state == state


def test_a_containers_limit_counts(small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cgroup_available_bytes", lambda: [GIB // 2])
    assert machine.check_memory(CheckContext(small_campaign)).state == "fail"


def test_a_clock_that_went_back(small_campaign: Workspace) -> None:
    path = small_campaign.label_batch(0)
    batch = files.read_json(path)
    batch["collected_at"] = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    files.write_json(path, batch)
    finding = machine.check_clock(CheckContext(small_campaign))
    assert (finding.state, "clock" in finding.fix) == ("fail", True)


@pytest.mark.parametrize(
    ("script", "state", "words"),
    [
        ("echo 'NVIDIA H100, 555.42, 81920, 120'", "pass", "NVIDIA H100 (80 GiB), driver 555.42"),
        ("echo 'NVIDIA H100, 555.42, 81920, 60000'", "warn", "takes memory"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "fail", "version mismatch"),
        ("exit 9", "fail", "is: nothing"),
    ],
)
def test_the_driver(
    small_campaign: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, state: str, words: str
) -> None:
    write_program(tmp_path, "nvidia-smi", script)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    finding = machine.check_gpu(CheckContext(small_campaign))
    assert (finding.state, words in finding.message) == (state, True), finding


def test_a_driver_that_hangs(small_campaign: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path, "nvidia-smi", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(machine, "_NVIDIA_SMI_LIMIT_S", 0.3)
    assert "no answer within 0.3 s" in machine.check_gpu(CheckContext(small_campaign)).message


@pytest.mark.parametrize(("name", "version"), [("fastapi", "0.151.0"), ("sqlalchemy", "2.1.9")])
def test_the_known_traps(small_campaign: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    installed = machine._installed_version
    monkeypatch.setattr(machine, "_installed_version", lambda asked: version if asked == name else installed(asked))
    finding = machine.check_versions(CheckContext(small_campaign))
    assert (finding.state, f"{name} is {version}" in finding.message) == ("fail", True)


def test_another_version_than_the_locked_one(
    small_campaign: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "# comment\nnumpy==0.0.1 \\\n    --hash=sha256:00\nno-such-thing==1.0 ; sys_platform == 'win32' \\\n"
        "    --hash=sha256:00\n"
    )
    monkeypatch.setattr(machine, "packaged_file", lambda _: lock)
    finding = machine.check_versions(CheckContext(small_campaign))
    assert finding.state == "warn"
    assert finding.message.startswith("1 package differs")
    assert "numpy is " in finding.message


def test_a_locked_package_of_an_extra_that_is_not_installed(
    small_campaign: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"numpy=={machine._installed_version('numpy')}\nno-such-thing-at-all==1.0\n")
    monkeypatch.setattr(machine, "packaged_file", lambda _: lock)
    assert machine.check_versions(CheckContext(small_campaign)).state == "pass"


def test_the_lock_of_this_repository_is_understood() -> None:
    lock = machine.packaged_file("requirements.lock")
    assert len(machine._version_differences(lock)) < 20


def test_code_that_changed_since_the_last_round(small_campaign: Workspace) -> None:
    digests = files.read_json(small_campaign.code_versions)
    files.write_json(small_campaign.code_versions, {**digests, "train": "of another day"})
    finding = machine.check_versions(CheckContext(small_campaign))
    assert (finding.state, "train" in finding.message) == ("warn", True)
