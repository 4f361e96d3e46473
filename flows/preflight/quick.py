"""Run the quick checks with which a run begins: what can be known within seconds, before hours of work."""

from dataclasses import replace

from flows.preflight.checks import CHECKS
from flows.preflight.context import CheckContext
from flows.preflight.result import Check, Finding
from flows.preflight.runner import run_checks
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

_LIMIT_S = 3.0
_FIX = "gleaner doctor tries everything and says what to do."


def require_ready(workspace: Workspace) -> list[str]:
    """Stop a run whose checks fail, and return the warnings.

    Only failures that a check states stop the night: one that was slow or broke itself proves nothing. Labels
    and annotators are not asked here, so a round whose labels are in can always be derived to its end.

    Raises:
        UserError: names every failed check.
    """
    quick = [_allow_unknown(check) for check in CHECKS if check.quick]
    context = CheckContext(workspace)
    results = run_checks(context, quick)
    failures = [result for result in results if result.finding.state == "fail"]
    if failures:
        raise _failed_checks_error(workspace, [(answer.name, answer.finding) for answer in failures])
    return [f"{answer.name}: {answer.finding.message}" for answer in results if answer.finding.state == "warn"]


def _allow_unknown(check: Check) -> Check:
    return replace(check, limit_s=_LIMIT_S, allow_unknown=True)


def _failed_checks_error(workspace: Workspace, failures: list[tuple[str, Finding]]) -> UserError:
    if len(failures) == 1:
        name, finding = failures[0]
        return UserError(f"{workspace.root} ({name})", finding.message, " ".join(finding.fix.split()))
    details = "; ".join(f"{name}: {finding.message}" for name, finding in failures)
    return UserError(workspace.root, f"failed checks are {len(failures)} ({details}), expected 0", _FIX)
