import threading
import time

import pytest

from flows.preflight.checks import CHECKS
from flows.preflight.runner import Check, CheckContext, CheckSkipped, Finding, failed, passed, run_checks
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError


@pytest.fixture
def context(tmp_path: object) -> CheckContext:
    return CheckContext(Workspace(tmp_path))  # type: ignore[arg-type]


def user_error(_: CheckContext) -> Finding:
    raise UserError("params.yaml", "seed is -1, expected at least 0", "Mend it.")


def bug(_: CheckContext) -> Finding:
    raise KeyError("nobody thought of this")


def skipped(_: CheckContext) -> Finding:
    raise CheckSkipped("params.yaml is broken")


def test_no_check_hides_another_and_the_order_stays(context: CheckContext) -> None:
    checks = [
        Check("bug", bug, 5),
        Check("fine", lambda _: passed("well"), 5),
        Check("mistake", user_error, 5),
        Check("impossible", skipped, 5),
        Check("bad", lambda _: failed("broken", "mend it"), 5),
    ]
    answers = run_checks(context, checks)
    assert [(answer.name, answer.finding.state) for answer in answers] == [
        ("bug", "fail"),
        ("fine", "pass"),
        ("mistake", "fail"),
        ("impossible", "warn"),
        ("bad", "fail"),
    ]
    assert "KeyError: 'nobody thought of this'" in answers[0].finding.message
    assert answers[2].finding == Finding("fail", "params.yaml: seed is -1, expected at least 0", "Mend it.")
    assert answers[3].finding.message == "not tried: params.yaml is broken"


def test_a_hanging_check_is_cut_at_its_limit_and_the_others_answer(context: CheckContext) -> None:
    release = threading.Event()

    def hang(_: CheckContext) -> Finding:
        release.wait(60)
        return passed("late")

    started_s = time.monotonic()
    answers = run_checks(context, [Check("stuck", hang, 0.5), Check("fine", lambda _: passed("well"), 5)])
    took_s = time.monotonic() - started_s
    release.set()
    assert 0.5 <= took_s < 5
    assert (answers[0].finding.state, answers[0].timed_out) == ("fail", True)
    assert answers[0].finding.message == "no answer within 0.5 s"
    assert answers[1].finding == passed("well")


def test_hanging_checks_hang_side_by_side(context: CheckContext) -> None:
    release = threading.Event()

    def hang(_: CheckContext) -> Finding:
        release.wait(60)
        return passed("late")

    started_s = time.monotonic()
    run_checks(context, [Check(f"stuck {number}", hang, 0.5) for number in range(6)])
    took_s = time.monotonic() - started_s
    release.set()
    assert took_s < 2.5


def test_a_lenient_check_only_fails_on_purpose(context: CheckContext) -> None:
    release = threading.Event()
    slow = Check("slow", lambda _: passed("late") if release.wait(60) else passed("later"), 0.2, allow_unknown=True)
    checks = [slow, Check("bug", bug, 5, allow_unknown=True), Check("mistake", user_error, 5, allow_unknown=True)]
    states = [answer.finding.state for answer in run_checks(context, checks)]
    release.set()
    assert states == ["warn", "warn", "fail"]


def test_names_are_unique_and_every_limit_is_a_time() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(check.limit_s > 0 for check in CHECKS)
    assert {check.name for check in CHECKS if check.quick} >= {"parameters", "disk", "branch"}
