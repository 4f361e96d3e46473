"""The state of an unfinished training run, so that a kill costs minutes and not the whole round."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any, ClassVar, Generic, NoReturn, Protocol, TypeVar

import torch

from detectron_ext.distributed import any_rank, barrier, is_main_process
from detectron_ext.trainer import StepLog
from tasks.runtime.errors import EXIT_INTERRUPTED
from tasks.storage import files

log = logging.getLogger(__name__)
LogT = TypeVar("LogT")
"""A dataclass with the figures of one step."""


class Resumable(Protocol):
    """A training that can be stored and brought back."""

    iteration: int

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs; tensors and plain numbers only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""


class RunCheckpoint(Generic[LogT]):
    """The newest state of an unfinished run, kept outside DVC; only used for the same inputs and code."""

    file_name: ClassVar[str]
    log_type: type[LogT]
    phase: ClassVar[str] = ""
    """What follows the number of an iteration in messages."""

    def __init__(self, folder: Path, key: str, hardware: dict[str, Any]) -> None:
        """Begin without reading.

        Args:
            folder: where the state is kept.
            key: digest of everything that decides the result, except the hardware.
            hardware: what the rounding of sums and the order of random draws depend on. A run that continues on other
                hardware loses no work, but ``hardware_changed`` records it.
        """
        self._path = folder / self.file_name
        self._key = key
        self._hardware = hardware
        self.hardware_changed = False
        self.exit_requested = False

    def load(self, trainer: Resumable) -> list[LogT]:
        """Bring ``trainer`` to the stored iteration; returns the log up to there."""
        if not self._path.is_file():
            return []
        try:
            # To the CPU: the trainer copies each tensor to where it belongs, and some belong on the CPU.
            state = torch.load(self._path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, UnpicklingError):
            log.warning("train: the checkpoint is unreadable and set aside; starting at iteration 0%s", self.phase)
            return []
        if state["key"] != self._key:
            log.info("train: the checkpoint belongs to other inputs; starting at iteration 0%s", self.phase)
            return []
        trainer.load_state_dict(state["run"])
        log.info("train: going on at iteration %d%s", trainer.iteration, self.phase)
        self.hardware_changed = bool(state["hardware_changed"])
        if state["hardware"] != self._hardware:
            self.hardware_changed = True
            log.warning(
                "train: the checkpoint is of %s, this process runs on %s; the result will differ from an uninterrupted"
                " run's by rounding and random draws",
                _format_hardware(state["hardware"]),
                _format_hardware(self._hardware),
            )
        return [self.log_type(**row) for row in state["logs"]]

    def save(self, trainer: Resumable, logs: list[LogT]) -> None:
        """Replace the stored state atomically."""
        state = {
            "key": self._key,
            "hardware": self._hardware,
            "hardware_changed": self.hardware_changed,
            "run": trainer.state_dict(),
            "logs": [asdict(entry) for entry in logs],  # type: ignore[call-overload]
        }
        write_state(state, self._path)

    def save_and_leave_if_asked(self, trainer: Resumable, logs: list[LogT], *, is_due: bool) -> None:
        """Save where a save is due or the process was asked to leave, and then leave."""
        should_exit = any_rank(self.exit_requested)
        if is_main_process() and (should_exit or is_due):
            self.save(trainer, logs)
        if should_exit:
            barrier()  # the first to go takes the others with it
            self.exit_interrupted(trainer.iteration)

    def delete(self) -> None:
        """Remove the state of a finished run."""
        self._path.unlink(missing_ok=True)

    def exit_on_signal(self) -> None:
        """Let SIGTERM and Ctrl-C end the run after the current iteration, with its state saved.

        Not in a worker of Ray, where training is not the main thread and no signal arrives.
        """
        if threading.current_thread() is not threading.main_thread():
            return

        def request(signum: int, frame: FrameType | None) -> None:
            del signum, frame
            self.exit_requested = True

        signal.signal(signal.SIGTERM, request)
        signal.signal(signal.SIGINT, request)

    def exit_interrupted(self, iteration: int) -> NoReturn:
        """End the process at once; the state is saved, and the workers that read ahead go with it."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take their end for an error
        for worker in multiprocessing.active_children():
            worker.kill()
        log.info("train: asked to leave; saved at iteration %d%s, run again to go on", iteration, self.phase)
        sys.stdout.flush()
        os._exit(EXIT_INTERRUPTED)


class Checkpoint(RunCheckpoint[StepLog]):
    """The state of the teacher-student training."""

    file_name = "checkpoint.pth"
    log_type = StepLog


def _format_hardware(hardware: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in hardware.items())


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write tensors atomically; the same state gives the same bytes.

    Through an open file, because torch writes a file's name into it, and the temporary name is another each time.
    """
    with files.atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
