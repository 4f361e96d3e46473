"""The quick form a night begins with: what can be known within seconds, before hours of work."""

from dataclasses import replace

from flows.doctor.checks import CHECKS
from flows.doctor.context import Context
from flows.doctor.examine import examine
from flows.doctor.finding import Check, Finding
from tasks.errors import UserError
from tasks.paths import Workspace

_LIMIT_S = 3.0
_FIX = "gleaner doctor tries everything and says what to do."


def require_fit(workspace: Workspace) -> list[str]:
    """Refuse a night that could not end well; return what somebody should know all the same.

    Only failures that a check states stop the night: one that was slow or broke itself proves nothing. Labels
    and annotators are not asked here, so a round whose labels are in can always be derived to its end.

    Raises:
        UserError: names every failed check.
    """
    quick = [_lenient(check) for check in CHECKS if check.quick]
    context = Context(workspace)
    answers = examine(context, quick)
    failures = [answer for answer in answers if answer.finding.state == "fail"]
    if failures:
        raise _refusal(workspace, [(answer.name, answer.finding) for answer in failures])
    return [f"{answer.name}: {answer.finding.what}" for answer in answers if answer.finding.state == "warn"]


def _lenient(check: Check) -> Check:
    return replace(check, limit_s=_LIMIT_S, lenient=True)


def _refusal(workspace: Workspace, failures: list[tuple[str, Finding]]) -> UserError:
    if len(failures) == 1:
        name, finding = failures[0]
        return UserError(f"{workspace.root} ({name})", finding.what, " ".join(finding.fix.split()))
    each = "; ".join(f"{name}: {finding.what}" for name, finding in failures)
    return UserError(workspace.root, f"failed checks are {len(failures)} ({each}), expected 0", _FIX)
