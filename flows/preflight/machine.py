"""Check the machine: disk, memory, clock, GPU, installed versions."""

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

from flows.annotation.batches import all_annotation_batches
from flows.preflight.runner import CheckContext, CheckSkipped, Finding, failed, passed, warned
from flows.runtime.gpu_lock import gpu_devices
from flows.workspace import git
from flows.workspace.dvc import locked_stages, packaged_file, stale_stages
from flows.workspace.rounds import all_ledgers
from tasks.data.label_store import read_batch
from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED
from tasks.export.packages import missing_packages, needed_packages
from tasks.runtime.errors import UserError
from tasks.storage import files

_GIB = 1 << 30
_MODEL_COPIES_IN_CHECKPOINT = 4  # a checkpoint: student, teacher and AdamW's two moments
_TEACHER_COPIES = 2  # MLflow's, and the delivery's until its labels are back
_DEFAULT_ROUND_BYTES = 1 * _GIB
_MIN_ROUNDS_AHEAD = 7
_MIN_FREE_INODES = 10_000
_MIN_MEMORY_BYTES = 1 * _GIB
_RECOMMENDED_MEMORY_BYTES = (
    3 * _GIB
)  # what training the smallest model with one loader worker was seen to take, and a half
_CLOCK_TOLERANCE = timedelta(minutes=5)
_NVIDIA_SMI_LIMIT_S = 10.0
_BUSY_GPU_FRAC = 0.2
_MAX_LISTED = 5
_KNOWN_INCOMPATIBLE = (
    ("fastapi", "<0.151", "Prefect's server does not start with it"),
    ("sqlalchemy", "<2.1", "with it Prefect never starts a scheduled run, without a message"),
)
"""Versions that pip accepts and that break a run; requirements.in has the reasons."""


def check_disk(context: CheckContext) -> Finding:
    """Check the free disk space for the next round, estimated from the last one, for the workspace and DVC's cache."""
    needed = estimate_round_bytes(context.workspace)
    folders = (context.workspace.root, dvc_cache_dir(context.workspace))
    fullest = min(folders, key=lambda folder: shutil.disk_usage(folder).free)
    free_bytes, disk = shutil.disk_usage(fullest).free, os.statvfs(fullest)
    space = f"{_format_size(free_bytes)} free at {fullest}, a round needs about {_format_size(needed)}"
    if free_bytes < needed:
        return failed(space, "Free disk space; gleaner gc lists what no round needs, and deletes it with --yes.")
    if disk.f_files and disk.f_favail < _MIN_FREE_INODES:
        return failed(f"{disk.f_favail} more files fit at {fullest}", "Delete files: the disk is out of inodes.")
    if free_bytes < _MIN_ROUNDS_AHEAD * needed:
        return warned(f"{space}: enough for {free_bytes // needed} more", "Free disk space, or use a larger disk.")
    return passed(space)


def estimate_round_bytes(workspace: Workspace) -> int:
    """Estimate the bytes that a round adds: its outputs, a checkpoint and copies of the teacher."""
    outputs = [item for entry in locked_stages(workspace).values() for item in entry.get("outs", ())]
    if not outputs:
        return _DEFAULT_ROUND_BYTES
    teacher = workspace.derived("train") / "teacher.pth"
    teacher_bytes = teacher.stat().st_size if teacher.is_file() else 0
    output_bytes = sum(int(item.get("size", 0)) for item in outputs)
    return output_bytes + (_MODEL_COPIES_IN_CHECKPOINT + _TEACHER_COPIES) * teacher_bytes


def dvc_cache_dir(workspace: Workspace) -> Path:
    """Return DVC's cache folder, which may be on another disk, or the nearest existing folder."""
    config = ConfigParser(strict=False, interpolation=None)
    folder = workspace.root / ".dvc"
    config.read_string("".join(_strip_indentation(folder / name) for name in ("config", "config.local")))
    cache = folder / config.get("cache", "dir", fallback="cache")
    return next(path for path in (cache, *cache.parents) if path.is_dir())


def check_memory(context: CheckContext) -> Finding:
    """Check the available memory, within the container's limit if there is one."""
    del context
    available = min([psutil.virtual_memory().available, *_cgroup_available_bytes()])
    message = f"{_format_size(available)} of memory available"
    if available < _MIN_MEMORY_BYTES:
        return failed(message, "End what takes it, or give the container more: training would be killed.")
    if available < _RECOMMENDED_MEMORY_BYTES:
        return warned(message, "Enough for a small detector only. See what takes it.")
    return passed(message)


def check_clock(context: CheckContext) -> Finding:
    """Check that the clock is not behind the campaign's newest record: leases and S3 signatures depend on it."""
    now = datetime.now(UTC)
    newest = max(_recorded_times(context), default=now)
    if newest > now + _CLOCK_TOLERANCE:
        return failed(
            f"it is {now.isoformat(timespec='seconds')} here, and something was recorded at {newest.isoformat()}",
            "Set the clock (timedatectl set-ntp true): leases and signed requests depend on it.",
        )
    return passed(f"{now.isoformat(timespec='seconds')}, after everything the campaign has recorded")


def check_gpu(context: CheckContext) -> Finding:
    """Check that the driver answers and the GPU is free; without a GPU training runs on the CPU."""
    del context
    program = shutil.which("nvidia-smi")
    devices = gpu_devices()
    if program is None:
        if devices:
            fix = "Install the driver's programs; in a container, start it with --gpus all."
            return failed(f"{len(devices)} NVIDIA devices and no nvidia-smi", fix)
        return passed("no NVIDIA driver: training runs on the CPU")
    query = ["--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader,nounits"]
    fix = "Load the driver again or restart the machine: training would run on the CPU, or not at all."
    try:
        result = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=_NVIDIA_SMI_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return failed(f"nvidia-smi gave no answer within {_NVIDIA_SMI_LIMIT_S:g} s", fix)
    lines = [line for line in (result.stdout or result.stderr).splitlines() if line.strip()]
    if result.returncode or not lines:
        return failed(f"the output of nvidia-smi is: {lines[0] if lines else 'nothing'}", fix)
    return _gpu_finding([[part.strip() for part in line.split(",")] for line in lines])


def check_backend(context: CheckContext) -> Finding:
    """Check that ``infer.backend`` can run: its packages, images for int8, and no GPU, which it would leave idle."""
    try:
        params = context.params.infer
    except UserError:
        raise CheckSkipped("params.yaml is broken") from None
    if params.backend == "torch":
        return passed("infer.backend is torch")
    missing = missing_packages(needed_packages(params.backend, params.backend_precision))
    if missing:
        fix = "Run: pip install 'gleaner[export]'. Or set infer.backend to torch."
        return failed(f"infer.backend is {params.backend} and the package {missing[0]} is not installed", fix)
    if params.backend_precision == "int8" and not _num_calibration_images(context.workspace):
        fix = "Import some: gleaner init --calibration-images N. Or set infer.backend_precision to fp32."
        return failed("infer.backend_precision is int8 and the number of calibration images is 0", fix)
    if gpu_devices():
        fix = "Set infer.backend to torch: inference is refused where torch sees the GPU."
        return warned(f"infer.backend is {params.backend} on a machine with a GPU", fix)
    return passed(f"infer.backend is {params.backend}, {params.backend_precision}")


def _num_calibration_images(workspace: Workspace) -> int:
    if not workspace.calibration.is_file():
        return 0
    return int(files.read_table(workspace.calibration, ANNOTATED, columns=["image_id"]).num_rows)


def check_versions(context: CheckContext) -> Finding:
    """Check that the installed versions are the locked ones; two known incompatible versions are failures."""
    for name, allowed, reason in _KNOWN_INCOMPATIBLE:
        installed = _installed_version(name)
        if installed is not None and installed not in SpecifierSet(allowed):
            return failed(f"{name} is {installed}, expected {allowed}: {reason}", "Install from requirements.lock.")
    try:
        lock = packaged_file("requirements.lock")
    except UserError:
        return warned("requirements.lock is not shipped with this installation", "Compare with the one you used.")
    differences = _version_differences(lock)
    if differences:
        more = f" and {len(differences) - _MAX_LISTED} more" if len(differences) > _MAX_LISTED else ""
        subject = "1 package differs" if len(differences) == 1 else f"{len(differences)} packages differ"
        return warned(
            f"{subject} from requirements.lock: {', '.join(differences[:_MAX_LISTED])}{more}",
            "Install from requirements.lock; other versions may work and were not tested together.",
        )
    stale = stale_stages(context.workspace)
    if stale:
        return warned(
            f"Gleaner's code has changed for {', '.join(stale)} since the last round",
            "Nothing to do, if you upgraded: the next round runs these stages again.",
        )
    return passed("as in requirements.lock; the campaign was made by this code")


def _format_size(size_bytes: float) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB / 10 else f"{size_bytes / (1 << 20):.0f} MiB"


def _strip_indentation(path: Path) -> str:
    """Remove the indent of DVC's keys, which ConfigParser takes for a continuation line."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return "".join(f"{line.strip()}\n" for line in lines)


def _cgroup_available_bytes() -> list[int]:
    """Yield the bytes that each cgroup limit leaves; nothing outside of containers."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        return [] if limit == "max" else [int(limit) - int((group / "memory.current").read_text())]
    except (OSError, ValueError):
        return []


def _recorded_times(context: CheckContext) -> list[datetime]:
    """Yield the times that machines recorded; times stated by annotators are not used."""
    workspace = context.workspace
    times = [ledger["times"]["published_at"] for ledger in all_ledgers(workspace)[-1:]]
    times += [delivery.created_at for delivery in all_annotation_batches(workspace)[-1:]]
    if context.round_number is not None:
        times.append(read_batch(workspace.label_batch(context.round_number)).collected_at)
    times.append(git.run_git(workspace.root, "log", "-1", "--format=%cI"))
    return [datetime.fromisoformat(time) for time in times]


def _gpu_finding(rows: list[list[str]]) -> Finding:
    """Return one row per GPU: name, driver, total and used MiB."""
    names = ", ".join(f"{name} ({int(total) >> 10} GiB)" for name, _, total, _ in rows)
    message = f"{names}, driver {rows[0][1]}"
    busy = [name for name, _, total, used in rows if int(used) > _BUSY_GPU_FRAC * int(total)]
    if busy:
        return warned(f"{message}; something takes memory of {', '.join(busy)}", "See what with nvidia-smi.")
    return passed(message)


def _version_differences(lock: Path) -> list[str]:
    """List the installed packages whose version is not the locked one.

    A locked package that is not installed is no difference: the lock also holds the packages of extras, such as s3.
    """
    lines = [line.rstrip(" \\") for line in lock.read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    applicable = [requirement for line in lines if _is_applicable(requirement := Requirement(line))]
    found = [(requirement, _installed_version(requirement.name)) for requirement in applicable]
    return [
        f"{requirement.name} is {version}, expected {requirement.specifier}"
        for requirement, version in found
        if version is not None and version not in requirement.specifier
    ]


def _is_applicable(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
