import threading
import time

import pytest

from flows.doctor.checks import CHECKS
from flows.doctor.context import Context
from flows.doctor.examine import examine
from flows.doctor.finding import Check, Finding, NotTriedError, failed, passed
from tasks.errors import UserError
from tasks.paths import Workspace


@pytest.fixture
def context(tmp_path: object) -> Context:
    return Context(Workspace(tmp_path))  # type: ignore[arg-type]


def users_mistake(_: Context) -> Finding:
    raise UserError("params.yaml", "seed is -1, expected at least 0", "Mend it.")


def bug(_: Context) -> Finding:
    raise KeyError("nobody thought of this")


def not_possible(_: Context) -> Finding:
    raise NotTriedError("params.yaml is broken")


def test_no_check_hides_another_and_the_order_stays(context: Context) -> None:
    checks = [
        Check("bug", bug, 5),
        Check("fine", lambda _: passed("well"), 5),
        Check("mistake", users_mistake, 5),
        Check("impossible", not_possible, 5),
        Check("bad", lambda _: failed("broken", "mend it"), 5),
    ]
    answers = examine(context, checks)
    assert [(answer.name, answer.finding.state) for answer in answers] == [
        ("bug", "fail"),
        ("fine", "pass"),
        ("mistake", "fail"),
        ("impossible", "warn"),
        ("bad", "fail"),
    ]
    assert "KeyError: 'nobody thought of this'" in answers[0].finding.what
    assert answers[2].finding == Finding("fail", "params.yaml: seed is -1, expected at least 0", "Mend it.")
    assert answers[3].finding.what == "not tried: params.yaml is broken"


def test_a_hanging_check_is_cut_at_its_limit_and_the_others_answer(context: Context) -> None:
    release = threading.Event()

    def hang(_: Context) -> Finding:
        release.wait(60)
        return passed("late")

    started_s = time.monotonic()
    answers = examine(context, [Check("stuck", hang, 0.5), Check("fine", lambda _: passed("well"), 5)])
    took_s = time.monotonic() - started_s
    release.set()
    assert 0.5 <= took_s < 5
    assert (answers[0].finding.state, answers[0].cut_off) == ("fail", True)
    assert answers[0].finding.what == "no answer within 0.5 s"
    assert answers[1].finding == passed("well")


def test_hanging_checks_hang_side_by_side(context: Context) -> None:
    release = threading.Event()

    def hang(_: Context) -> Finding:
        release.wait(60)
        return passed("late")

    started_s = time.monotonic()
    examine(context, [Check(f"stuck {number}", hang, 0.5) for number in range(6)])
    took_s = time.monotonic() - started_s
    release.set()
    assert took_s < 2.5


def test_a_lenient_check_only_fails_on_purpose(context: Context) -> None:
    release = threading.Event()
    slow = Check("slow", lambda _: passed("late") if release.wait(60) else passed("later"), 0.2, lenient=True)
    checks = [slow, Check("bug", bug, 5, lenient=True), Check("mistake", users_mistake, 5, lenient=True)]
    states = [answer.finding.state for answer in examine(context, checks)]
    release.set()
    assert states == ["warn", "warn", "fail"]


def test_names_are_unique_and_every_limit_is_a_time() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(check.limit_s > 0 for check in CHECKS)
    assert {check.name for check in CHECKS if check.quick} >= {"parameters", "disk", "branch"}
