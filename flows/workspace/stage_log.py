"""What stages printed and how long they took, by round: below .gleaner/, so never part of a result."""

from pathlib import Path

from tasks.data.paths import Workspace
from tasks.storage import files


def stage_log(workspace: Workspace, round_number: int, stage: str) -> Path:
    """All a stage printed in one round, every attempt."""
    return _folder(workspace, round_number) / f"{stage}.log"


def record_seconds(workspace: Workspace, round_number: int, stage: str, seconds: float, *, skipped: bool) -> None:
    """Keep the time of the attempt that did the work, not of a later one that found it done."""
    path = stage_log(workspace, round_number, stage).with_suffix(".json")
    if not skipped or not path.exists():
        files.write_json(path, {"seconds": seconds, "skipped": skipped})


def stage_seconds(workspace: Workspace, round_number: int) -> dict[str, float]:
    """Seconds each stage of a round took, DVC's hashing included."""
    paths = sorted(_folder(workspace, round_number).glob("*.json"))
    return {path.stem: float(files.read_json(path)["seconds"]) for path in paths}


def skipped_stages(workspace: Workspace, round_number: int) -> set[str]:
    """Stages of a round that DVC found done already, here or in a cache it shares."""
    paths = _folder(workspace, round_number).glob("*.json")
    return {path.stem for path in paths if files.read_json(path)["skipped"]}


def _folder(workspace: Workspace, round_number: int) -> Path:
    return workspace.root / ".gleaner" / "logs" / f"round-{round_number:04d}"
