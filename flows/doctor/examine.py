"""Runs checks: all at once, each with a time limit of its own, none able to hide another."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Thread

from flows.doctor.context import Context
from flows.doctor.finding import Check, Finding, NotTriedError, State
from tasks.errors import UserError


@dataclass(frozen=True)
class Examined:
    """One check with its answer."""

    name: str
    finding: Finding
    seconds: float
    cut_off: bool = False
    """It gave no answer in time, and may still be waiting for something."""


def examine(context: Context, checks: Sequence[Check]) -> list[Examined]:
    """Try every check; answers in the order of ``checks``.

    A check that hangs is left behind in its thread, which ends with the command: Python cannot stop it. The
    ones that talk to a service do so in a process of their own, which is stopped.
    """
    started_s = time.monotonic()
    answers = [_start(context, check) for check in checks]
    return [_answer(check, queue, started_s) for check, queue in zip(checks, answers, strict=True)]


def _start(context: Context, check: Check) -> "Queue[Examined]":
    queue: Queue[Examined] = Queue()

    def work() -> None:
        started_s = time.monotonic()
        finding = _tried(context, check)
        queue.put(Examined(check.name, finding, round(time.monotonic() - started_s, 3)))

    Thread(target=work, name=f"doctor-{check.name}", daemon=True).start()
    return queue


def _tried(context: Context, check: Check) -> Finding:
    try:
        return check.run(context)
    except NotTriedError as reason:
        return Finding("warn", f"not tried: {reason}", "Mend that first.")
    except UserError as error:
        where = "" if error.where == str(context.workspace.root) else f"{error.where}: "
        return Finding("fail", f"{where}{error.problem}", error.fix)
    except Exception as error:  # whatever it is, the other checks have their say
        said = (str(error).splitlines() or [""])[0]
        broke = f"the check itself broke ({type(error).__name__}: {said})"
        return Finding(_unknown(check), broke, "Report this as a bug.")


def _answer(check: Check, queue: "Queue[Examined]", started_s: float) -> Examined:
    left_s = started_s + check.limit_s - time.monotonic()
    try:
        return queue.get(timeout=max(left_s, 0.01))
    except Empty:
        slow = f"no answer within {check.limit_s:g} s"
        finding = Finding(_unknown(check), slow, "See what it waits for, and try again.")
        return Examined(check.name, finding, check.limit_s, cut_off=True)


def _unknown(check: Check) -> State:
    return "warn" if check.lenient else "fail"
