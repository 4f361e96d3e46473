"""A stage's function on every GPU of the machine at once: one process each, one outcome."""

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

from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from detectron_ext.distributed import is_first, num_devices, run_on_all_devices
from tasks.entry import die_with_parent
from tasks.errors import LEFT_EARLY, UserError
from tasks.shortage import in_one_line


def on_all_devices(stage: str, function: Callable[..., None], *args: Any) -> None:
    """Call ``function`` in one process per GPU; right here where there is one GPU or none.

    Args:
        stage: named in errors.
        function: of a module's top level; all processes do the same, and only the first writes.
        args: can be pickled.

    Raises:
        UserError: what the first process that failed raised; memory or disk space that ran out comes as one too.
    """
    if num_devices() == 1:
        function(*args)
        return
    told: SimpleQueue[UserError] = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        with _signals_passed_on():
            run_on_all_devices(_in_own_process, stage, told, function, args)
    except ProcessRaisedException:
        if told.empty():
            raise
        raise told.get() from None
    except ProcessExitedException as error:
        if error.exit_code != LEFT_EARLY:
            raise
        sys.stdout.flush()
        os._exit(LEFT_EARLY)  # asked to leave: every process has, and the state is saved


def _in_own_process(
    stage: str, told: "SimpleQueue[UserError]", function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    die_with_parent()
    level = logging.INFO if is_first() else logging.WARNING  # one voice is enough
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    try:
        function(*args)
    except Exception as error:
        named = in_one_line(stage, error)
        if named is not None:
            told.put(named)
        raise


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Whoever is asked to leave asks the others, and waits until they have saved their state."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        for child in multiprocessing.active_children():
            child.terminate()

    former = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
