"""Checks on the machine: space, memory, clock, GPU, installed versions."""

import importlib.metadata
import os
import shutil
import subprocess
from configparser import ConfigParser
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flows import vcs
from flows.code_digests import drifted_stages, packaged
from flows.data_versions import locked_stages
from flows.doctor.context import Context
from flows.doctor.finding import Finding, failed, passed, warned
from flows.labels.deliveries import all_deliveries
from flows.records.ledger import all_ledgers
from tasks.errors import UserError
from tasks.label_store import read_batch
from tasks.paths import Workspace

_GIB = 1 << 30
_STATES_OF_TRAINING = 4  # a checkpoint: student, teacher and AdamW's two moments
_COPIES_OF_TEACHER = 2  # MLflow's, and the delivery's until its labels are back
_BEFORE_THE_FIRST_ROUND_BYTES = 1 * _GIB
_ROUNDS_AHEAD = 7
_FEW_FILES = 10_000
_LEAST_MEMORY_BYTES = 1 * _GIB
_GOOD_MEMORY_BYTES = 3 * _GIB  # what training the smallest model with one loader worker was seen to take, and a half
_CLOCK_TOLERANCE = timedelta(minutes=5)
_NVIDIA_SMI_LIMIT_S = 10.0
_BUSY_GPU_FRAC = 0.2
_NAMED = 5
_TRAPS = (
    ("fastapi", "<0.151", "Prefect's server does not start with it"),
    ("sqlalchemy", "<2.1", "with it Prefect never starts a scheduled night, and says nothing"),
)
"""Versions that pip takes for good and that break a night; requirements.in has the reasons."""


def check_disk(context: Context) -> Finding:
    """Room for the next round, by the sizes of the last one, where its files and DVC's cache are."""
    needed = round_bytes(context.workspace)
    places = (context.workspace.root, cache_folder(context.workspace))
    place = min(places, key=lambda folder: shutil.disk_usage(folder).free)
    free_bytes, disk = shutil.disk_usage(place).free, os.statvfs(place)
    room = f"{_gib(free_bytes)} free at {place}, a round needs about {_gib(needed)}"
    if free_bytes < needed:
        return failed(room, "Make room; gleaner gc says what no round needs, and frees it with --yes.")
    if disk.f_files and disk.f_favail < _FEW_FILES:
        return failed(f"{disk.f_favail} more files fit at {place}", "Make room: the disk is out of inodes.")
    if free_bytes < _ROUNDS_AHEAD * needed:
        return warned(f"{room}: enough for {free_bytes // needed} more", "Make room, or give it another disk.")
    return passed(room)


def round_bytes(workspace: Workspace) -> int:
    """What a round adds to the disk, as an estimate: its outputs, a checkpoint, and copies of the teacher."""
    outputs = [item for entry in locked_stages(workspace).values() for item in entry.get("outs", ())]
    if not outputs:
        return _BEFORE_THE_FIRST_ROUND_BYTES
    teacher = workspace.derived("train") / "teacher.pth"
    teacher_bytes = teacher.stat().st_size if teacher.is_file() else 0
    made = sum(int(item.get("size", 0)) for item in outputs)
    return made + (_STATES_OF_TRAINING + _COPIES_OF_TEACHER) * teacher_bytes


def cache_folder(workspace: Workspace) -> Path:
    """DVC's cache, which may be on another disk; an existing folder."""
    config = ConfigParser(strict=False, interpolation=None)
    folder = workspace.root / ".dvc"
    config.read_string("".join(_unindented(folder / name) for name in ("config", "config.local")))
    cache = folder / config.get("cache", "dir", fallback="cache")
    return next(place for place in (cache, *cache.parents) if place.is_dir())


def check_memory(context: Context) -> Finding:
    """Memory that is left, within the container's limit where there is one."""
    del context
    available = min([psutil.virtual_memory().available, *_container_bytes()])
    what = f"{_gib(available)} of memory available"
    if available < _LEAST_MEMORY_BYTES:
        return failed(what, "End what takes it, or give the container more: training would be killed.")
    if available < _GOOD_MEMORY_BYTES:
        return warned(what, "Enough for a small detector only. See what takes it.")
    return passed(what)


def check_clock(context: Context) -> Finding:
    """Time has not gone back since the campaign's last entry: leases, schedules and S3's signatures trust it."""
    now = datetime.now(UTC)
    newest = max(_recorded_times(context), default=now)
    if newest > now + _CLOCK_TOLERANCE:
        return failed(
            f"it is {now.isoformat(timespec='seconds')} here, and something was recorded at {newest.isoformat()}",
            "Set the clock (timedatectl set-ntp true): leases and signed requests depend on it.",
        )
    return passed(f"{now.isoformat(timespec='seconds')}, after everything the campaign has recorded")


def check_gpu(context: Context) -> Finding:
    """The driver answers and the GPU is free; without one training runs on the CPU."""
    del context
    program = shutil.which("nvidia-smi")
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if program is None:
        if devices:
            fix = "Install the driver's programs; in a container, start it with --gpus all."
            return failed(f"{len(devices)} NVIDIA devices and no nvidia-smi", fix)
        return passed("no NVIDIA driver: training runs on the CPU")
    query = ["--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader,nounits"]
    fix = "Load the driver again or restart the machine: training would run on the CPU, or not at all."
    try:
        done = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=_NVIDIA_SMI_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return failed(f"nvidia-smi gave no answer within {_NVIDIA_SMI_LIMIT_S:g} s", fix)
    lines = [line for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    if done.returncode or not lines:
        return failed(f"nvidia-smi says: {lines[0] if lines else 'nothing'}", fix)
    return _gpus([[part.strip() for part in line.split(",")] for line in lines])


def check_versions(context: Context) -> Finding:
    """What is installed is what was tested together; the two known traps are failures."""
    for name, allowed, why in _TRAPS:
        installed = _installed(name)
        if installed is not None and installed not in SpecifierSet(allowed):
            return failed(f"{name} is {installed}, expected {allowed}: {why}", "Install from requirements.lock.")
    try:
        lock = packaged("requirements.lock")
    except UserError:
        return warned("requirements.lock is not shipped with this installation", "Compare with the one you used.")
    differing = _differing(lock)
    if differing:
        more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        return warned(
            f"{len(differing)} packages differ from requirements.lock: {', '.join(differing[:_NAMED])}{more}",
            "Install from requirements.lock; other versions may work and were not tested together.",
        )
    drifted = drifted_stages(context.workspace)
    if drifted:
        return warned(
            f"Gleaner's code has changed for {', '.join(drifted)} since the last round",
            "Nothing to do, if you upgraded: the next round runs these stages again.",
        )
    return passed("as in requirements.lock; the campaign was made by this code")


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB / 10 else f"{size_bytes / (1 << 20):.0f} MiB"


def _unindented(path: Path) -> str:
    """DVC indents its keys, which ConfigParser takes for the line before."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return "".join(f"{line.strip()}\n" for line in lines)


def _container_bytes() -> list[int]:
    """What a cgroup still allows; nothing outside of containers."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        return [] if limit == "max" else [int(limit) - int((group / "memory.current").read_text())]
    except (OSError, ValueError):
        return []


def _recorded_times(context: Context) -> list[datetime]:
    """When machines recorded something; people's own times are not asked."""
    workspace = context.workspace
    times = [ledger["times"]["published_at"] for ledger in all_ledgers(workspace)[-1:]]
    times += [delivery.created_at for delivery in all_deliveries(workspace)[-1:]]
    if context.round_number is not None:
        times.append(read_batch(workspace.label_batch(context.round_number)).collected_at)
    times.append(vcs.git(workspace.root, "log", "-1", "--format=%cI"))
    return [datetime.fromisoformat(time) for time in times]


def _gpus(rows: list[list[str]]) -> Finding:
    """Rows of name, driver, total and used MiB."""
    names = ", ".join(f"{name} ({int(total) >> 10} GiB)" for name, _, total, _ in rows)
    what = f"{names}, driver {rows[0][1]}"
    busy = [name for name, _, total, used in rows if int(used) > _BUSY_GPU_FRAC * int(total)]
    if busy:
        return warned(f"{what}; something takes memory of {', '.join(busy)}", "See what with nvidia-smi.")
    return passed(what)


def _differing(lock: Path) -> list[str]:
    lines = [line.rstrip(" \\") for line in lock.read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    wanted = [requirement for line in lines if _applies(requirement := Requirement(line))]
    found = [(requirement, _installed(requirement.name)) for requirement in wanted]
    return [
        f"{requirement.name} {version or 'is missing'}, expected {requirement.specifier}"
        for requirement, version in found
        if version is None or version not in requirement.specifier
    ]


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
