"""Run checks in parallel, each with its own time limit, so that none can hide another."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Thread

from flows.preflight.context import CheckContext
from flows.preflight.result import Check, CheckSkipped, Finding, State
from tasks.runtime.errors import UserError


@dataclass(frozen=True)
class CheckResult:
    """One check with its result."""

    name: str
    finding: Finding
    seconds: float
    timed_out: bool = False
    """It exceeded its time limit, and may still be running."""


def run_checks(context: CheckContext, checks: Sequence[Check]) -> list[CheckResult]:
    """Run every check and return the results in the order of ``checks``.

    A check that hangs is left behind in its thread, which ends with the command: Python cannot stop it. The
    ones that talk to a service do so in a process of their own, which is stopped.
    """
    started_s = time.monotonic()
    queues = [_start(context, check) for check in checks]
    return [_await_result(check, queue, started_s) for check, queue in zip(checks, queues, strict=True)]


def _start(context: CheckContext, check: Check) -> "Queue[CheckResult]":
    queue: Queue[CheckResult] = Queue()

    def work() -> None:
        started_s = time.monotonic()
        finding = _run_check(context, check)
        queue.put(CheckResult(check.name, finding, round(time.monotonic() - started_s, 3)))

    Thread(target=work, name=f"doctor-{check.name}", daemon=True).start()
    return queue


def _run_check(context: CheckContext, check: Check) -> Finding:
    try:
        return check.run(context)
    except CheckSkipped as reason:
        return Finding("warn", f"not tried: {reason}", "Mend that first.")
    except UserError as error:
        where = "" if error.where == str(context.workspace.root) else f"{error.where}: "
        return Finding("fail", f"{where}{error.problem}", error.fix)
    except Exception as error:  # whatever it is, the other checks have their say
        message = (str(error).splitlines() or [""])[0]
        problem = f"the check itself broke ({type(error).__name__}: {message})"
        return Finding(_unknown_state(check), problem, "Report this as a bug.")


def _await_result(check: Check, queue: "Queue[CheckResult]", started_s: float) -> CheckResult:
    left_s = started_s + check.limit_s - time.monotonic()
    try:
        return queue.get(timeout=max(left_s, 0.01))
    except Empty:
        problem = f"no answer within {check.limit_s:g} s"
        finding = Finding(_unknown_state(check), problem, "See what it waits for, and try again.")
        return CheckResult(check.name, finding, check.limit_s, timed_out=True)


def _unknown_state(check: Check) -> State:
    return "warn" if check.allow_unknown else "fail"
