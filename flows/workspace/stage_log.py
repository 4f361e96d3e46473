"""Logs and durations of stages by round, below .gleaner/ and therefore never part of a result."""

from pathlib import Path

from tasks.data.paths import Workspace
from tasks.storage import files


def stage_log(workspace: Workspace, round_number: int, stage: str) -> Path:
    """Return the log file of a stage in one round; all attempts append to it."""
    return _folder(workspace, round_number) / f"{stage}.log"


def record_seconds(workspace: Workspace, round_number: int, stage: str, seconds: float, *, skipped: bool) -> None:
    """Record the duration of the attempt that did the work, not of a later one that skipped it."""
    path = stage_log(workspace, round_number, stage).with_suffix(".json")
    if not skipped or not path.exists():
        files.write_json(path, {"seconds": seconds, "skipped": skipped})


def stage_seconds(workspace: Workspace, round_number: int) -> dict[str, float]:
    """Return the seconds that each stage of a round took, DVC's hashing included."""
    paths = sorted(_folder(workspace, round_number).glob("*.json"))
    return {path.stem: float(files.read_json(path)["seconds"]) for path in paths}


def skipped_stages(workspace: Workspace, round_number: int) -> set[str]:
    """Return the stages of a round that DVC skipped or took from a shared cache."""
    paths = _folder(workspace, round_number).glob("*.json")
    return {path.stem for path in paths if files.read_json(path)["skipped"]}


def _folder(workspace: Workspace, round_number: int) -> Path:
    return workspace.root / ".gleaner" / "logs" / f"round-{round_number:04d}"
