"""Define a check and its result, and run checks in parallel, each with its own time limit.

What several checks need is read once, by ``CheckContext``; a broken file fails the checks that need it, and no others.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from queue import Empty, Queue
from threading import Thread
from typing import Any, Literal

import yaml

from flows.workspace.rounds import newest_round
from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX
from tasks.params import Params, load_params
from tasks.runtime.errors import UserError
from tasks.storage import files

State = Literal["pass", "warn", "fail"]


class CheckContext:
    """The campaign that is checked."""

    def __init__(self, workspace: Workspace) -> None:
        """Take the workspace; files are read when a check needs them."""
        self.workspace = workspace

    @cached_property
    def params(self) -> Params:
        """Return the validated parameters.

        Raises:
            UserError: as ``load_params`` says.
        """
        return load_params(self.workspace.params)

    @cached_property
    def raw_params(self) -> dict[str, Any]:
        """Return params.yaml without validation; empty if it is not YAML."""
        try:
            content = files.parse_yaml(self.workspace.params.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def classes(self) -> list[str] | None:
        """Return the class names, even if another parameter is invalid; None if they are."""
        names = self.raw_params.get("classes")
        usable = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        return list(names) if usable and names is not None else None

    @cached_property
    def index(self) -> list[dict[str, Any]]:
        """Return the rows of the pool's index, ``schemas.INDEX``.

        Raises:
            UserError: missing or unreadable.
        """
        rows: list[dict[str, Any]] = files.read_table(self.workspace.index, INDEX).to_pylist()
        return rows

    @cached_property
    def round_number(self) -> int | None:
        """Return the number of the newest label batch; None if the batches cannot be read."""
        try:
            return newest_round(self.workspace)
        except UserError:
            return None


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    state: State
    """``warn``: a run works, but a person should know. ``fail``: a run would fail or give wrong results."""
    message: str
    """What was found: one sentence without its final period."""
    fix: str = ""
    """How to correct it; empty if nothing has to be done."""


class CheckSkipped(Exception):
    """A check cannot run because of a problem that another check reports."""


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    """Unique; an anchor of docs/operations.md."""
    run: Callable[[CheckContext], Finding]
    """May raise UserError, reported as ``fail``, or CheckSkipped, reported as ``warn``."""
    limit_s: float
    """Time limit; after it the result is ``fail`` and the check is abandoned."""
    quick: bool = False
    """Takes well under a second, changes nothing and needs no service: a run starts with it."""
    allow_unknown: bool = False
    """A timeout or an error in the check itself is a ``warn`` instead of a ``fail``."""


def passed(message: str) -> Finding:
    """Return a passing result."""
    return Finding("pass", message)


def warned(message: str, fix: str) -> Finding:
    """Return a warning."""
    return Finding("warn", message, fix)


def failed(message: str, fix: str) -> Finding:
    """Return a failure."""
    return Finding("fail", message, fix)


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
        return Finding("warn", f"not tried: {reason}", "Correct that first.")
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
