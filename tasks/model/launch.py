"""A function of a stage in several processes with one outcome: one for each GPU of the machine, or torchrun's."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import is_torchelastic_launched
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from detectron_ext.distributed import barrier, is_main_process, launch_processes, num_devices
from tasks.runtime.errors import EXIT_INTERRUPTED, UserError
from tasks.runtime.resource_errors import as_user_error
from tasks.runtime.stage_main import set_pdeathsig


def launch(stage: str, function: Callable[..., None], *args: Any) -> None:
    """Call ``function`` in one process per GPU; right here where there is one GPU or none.

    Where ``torchrun`` has started this process, it is one of several already, on one or more machines; then they meet
    by the addresses that it gives them.

    Args:
        stage: named in errors.
        function: of a module's top level; all processes do the same, and only the first writes.
        args: can be pickled.

    Raises:
        UserError: what the first process that failed raised; memory or disk space that ran out comes as one too.
    """
    if is_torchelastic_launched():
        _run_as_rank(stage, function, *args)
        return
    if num_devices() == 1:
        function(*args)
        return
    error_queue: SimpleQueue[UserError] = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        with _forward_signals():
            launch_processes(_run_worker, stage, error_queue, function, args)
    except ProcessRaisedException:
        if error_queue.empty():
            raise
        raise error_queue.get() from None
    except ProcessExitedException as error:
        if error.exit_code != EXIT_INTERRUPTED:
            raise
        sys.stdout.flush()
        os._exit(EXIT_INTERRUPTED)  # asked to leave: every process has, and the state is saved


def _run_as_rank(stage: str, function: Callable[..., None], *args: Any) -> None:
    if stage != "train":
        raise UserError("torchrun", f"the stage is {stage}, expected train", "For inference set infer.engine to ray.")
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend)
    if not is_main_process():
        logging.getLogger().setLevel(logging.WARNING)  # one voice is enough
    try:
        function(*args)
        barrier()  # none leaves before the first has written: the others' files are those
    finally:
        dist.destroy_process_group()


def _run_worker(
    stage: str, error_queue: "SimpleQueue[UserError]", function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    set_pdeathsig()
    level = logging.INFO if is_main_process() else logging.WARNING  # one voice is enough
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    try:
        function(*args)
    except Exception as error:
        user_error = as_user_error(stage, error)
        if user_error is not None:
            error_queue.put(user_error)
        raise


@contextmanager
def _forward_signals() -> Iterator[None]:
    """Whoever is asked to leave asks the others, and waits until they have saved their state."""

    def forward(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        for child in multiprocessing.active_children():
            child.terminate()

    previous_handlers = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
