"""The state of an unfinished training run, so that a kill costs minutes and not the night."""

import logging
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from detectron_ext.trainer import StepLog, TeacherStudent
from tasks import files

log = logging.getLogger(__name__)


class Checkpoint:
    """The newest state of an unfinished run, kept outside DVC; only used for the very same inputs."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / "checkpoint.pth"
        self._key = key
        self.leave_requested = False

    def load(self, run: TeacherStudent) -> list[StepLog]:
        """Bring ``run`` to the stored iteration; returns the log up to there."""
        if not self._path.is_file():
            return []
        try:
            state = torch.load(self._path, map_location=run.student.device, weights_only=True)
        except (RuntimeError, EOFError, OSError):
            log.warning("train: the checkpoint is unreadable and set aside; starting at iteration 0")
            return []
        if state["key"] != self._key:
            log.info("train: the checkpoint belongs to other inputs; starting at iteration 0")
            return []
        run.load_state_dict(state["run"])
        log.info("train: going on at iteration %d", run.iteration)
        return [StepLog(**row) for row in state["logs"]]

    def save(self, run: TeacherStudent, logs: list[StepLog]) -> None:
        """Replace the stored state atomically."""
        with files.replacing(self._path) as temporary:
            torch.save(
                {"key": self._key, "run": run.state_dict(), "logs": [asdict(entry) for entry in logs]},
                temporary,
            )

    def forget(self) -> None:
        """The run is finished."""
        self._path.unlink(missing_ok=True)

    def leave_on_signal(self) -> None:
        """SIGTERM and Ctrl-C end the run after the current iteration, with its state saved."""

        def request(signum: int, frame: FrameType | None) -> None:
            del signum, frame
            self.leave_requested = True

        signal.signal(signal.SIGTERM, request)
        signal.signal(signal.SIGINT, request)

    def leave(self, iteration: int) -> NoReturn:
        """End the process at once; the state is saved and loader workers must not delay the exit."""
        log.info("train: asked to leave; saved at iteration %d, run again to go on", iteration)
        sys.stdout.flush()
        os._exit(128 + signal.SIGTERM)
