"""What a failed ``dvc repro`` means: DVC itself always ends with code 255, so its words are read."""

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import LEFT_EARLY, OUT_OF_REACH, DiskFullError, GuardRailError, OutOfMemoryError, UserError
from tasks.shortage import disk_full, says_disk_full

_EXITED = re.compile(r"^ERROR: .*\bexited with (-?\d+)")
_BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")
_CHATTER = re.compile(
    r"^(Running stage '|> python -m |(Generating|Updating) lock file|Use `dvc push`"
    r"|To (track the changes|enable auto staging)|\tgit add |\tdvc config core.autostage"
    r"|Data and pipelines are up to date|ERROR: failed to reproduce|$)"
)
_OWN_WORDS = {kind.exit_code: kind for kind in (UserError, GuardRailError, OutOfMemoryError, DiskFullError)}
_ENDED_BY = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_KILLED = {LEFT_EARLY, *(-number for number in _ENDED_BY), *(128 + number for number in _ENDED_BY)}


class StageError(UserError):
    """A stage ended badly; says what it said last, where all of it stands and how to repeat it alone."""

    exit_code = 1


class StageBusyError(StageError):
    """Another process holds what the stage writes."""

    transient = True


class StageKilledError(StageError):
    """Somebody, or Linux for want of memory, ended the stage from outside; it goes on from what it kept."""

    transient = True


class StageCutOffError(StageError):
    """A service outside, as the object store with the images, gave a stage no answer."""

    transient = True


class StageTimeoutError(StageError):
    """A stage took longer than it may; what it kept is kept."""


def is_chatter(line: str) -> bool:
    """Whether a line is DVC's own and tells an operator nothing."""
    return bool(_CHATTER.search(line))


def stage_failure(root: Path, stage: str, code: int, lines: Sequence[str], log_file: Path) -> UserError:
    """The error behind a ``dvc repro`` of ``stage`` that ended with ``code`` after printing ``lines``."""
    repeat = f"Repeat it alone with: {repeat_command(root, stage)}"
    errors = [line for line in lines if line.startswith("ERROR: ")]
    said = [line for line in lines if line.strip() and not line.startswith("ERROR: ") and not is_chatter(line)]
    exits = [int(match[1]) for line in errors if (match := _EXITED.search(line))]
    ended = exits[-1] if exits else code
    if exits and ended in _OWN_WORDS:
        return _OWN_WORDS[ended](stage, _sentence(said), repeat)
    if any(map(says_disk_full, (*errors, *said[-1:]))):
        return disk_full(stage)
    where = f"All it said: {log_file}. {repeat}"
    if exits and ended == OUT_OF_REACH:
        return StageCutOffError(stage, _sentence(said), where)
    if ended in _KILLED:
        return StageKilledError(stage, f"it was ended from outside (code {ended}), expected it to finish", where)
    if any(_BUSY.search(line) for line in errors):
        return StageBusyError(stage, _sentence(errors), repeat)
    if exits:
        return StageError(stage, f"the stage ended with code {ended} ({_sentence(said)}), expected 0", where)
    return StageError(stage, _sentence([line.removeprefix("ERROR: ") for line in errors] or lines), where)


def repeat_command(root: Path, stage: str) -> str:
    """What a person types to run a stage alone."""
    return f"cd {root} && dvc repro --single-item {stage}"


def _sentence(lines: Sequence[str]) -> str:
    return (lines[-1].strip() if lines else "it said nothing").rstrip(".")
