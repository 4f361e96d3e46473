"""List all checks, in the order in which the table shows them, and run the quick ones with which a run begins."""

from dataclasses import replace

from flows.preflight import campaign, machine, services
from flows.preflight.runner import Check, CheckContext, Finding, run_checks
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

_FAST_LIMIT_S = 20.0
_SLOW_LIMIT_S = 60.0

CHECKS = (
    Check("parameters", campaign.check_parameters, _FAST_LIMIT_S, quick=True),
    Check("classes", campaign.check_classes, _FAST_LIMIT_S, quick=True),
    Check("labels", campaign.check_labels, _SLOW_LIMIT_S),
    Check("fixed sets", campaign.check_fixed_sets, _FAST_LIMIT_S),
    Check("images", campaign.check_images, _SLOW_LIMIT_S),
    Check("pool", campaign.check_pool, _FAST_LIMIT_S),
    Check("detector", services.check_detector, services.DETECTOR_LIMIT_S),
    Check("cluster", services.check_cluster, services.CLUSTER_LIMIT_S),
    Check("backend", machine.check_backend, _FAST_LIMIT_S, quick=True),
    Check("disk", machine.check_disk, _FAST_LIMIT_S, quick=True),
    Check("memory", machine.check_memory, _FAST_LIMIT_S, quick=True),
    Check("GPU", machine.check_gpu, _FAST_LIMIT_S, quick=True),
    Check("clock", machine.check_clock, _FAST_LIMIT_S),
    Check("versions", machine.check_versions, _FAST_LIMIT_S, quick=True),
    Check("owner", campaign.check_owner, _FAST_LIMIT_S, quick=True),
    Check("branch", campaign.check_branch, _FAST_LIMIT_S, quick=True),
    Check("changes", campaign.check_uncommitted, _FAST_LIMIT_S),
    Check("rounds", campaign.check_rounds, _FAST_LIMIT_S),
    Check("remote", services.check_remote, services.REMOTE_LIMIT_S),
    Check("MLflow", services.check_tracking, services.TRACKING_LIMIT_S),
    Check("annotators", services.check_provider, _SLOW_LIMIT_S),
    Check("open work", services.check_open_work, _SLOW_LIMIT_S),
    Check("schedule", services.check_schedule, _SLOW_LIMIT_S),
)
_LIMIT_S = 3.0
_FIX = "gleaner doctor runs all checks and shows each fix."


def require_ready(context: CheckContext) -> list[str]:
    """Run the quick checks, refuse a run for which one fails, and return the warnings.

    Only a failure that a check states refuses the run: a check that was slow or raised an error proves nothing. Labels
    and annotators are not checked, so that a round whose labels are collected can always be derived to its end.

    Raises:
        UserError: names every failed check.
    """
    results = run_checks(context, [_allow_unknown(check) for check in CHECKS if check.quick])
    failures = [result for result in results if result.finding.state == "fail"]
    if failures:
        raise _failed_checks_error(context.workspace, [(answer.name, answer.finding) for answer in failures])
    return [f"{answer.name}: {answer.finding.message}" for answer in results if answer.finding.state == "warn"]


def _allow_unknown(check: Check) -> Check:
    return replace(check, limit_s=_LIMIT_S, allow_unknown=True)


def _failed_checks_error(workspace: Workspace, failures: list[tuple[str, Finding]]) -> UserError:
    if len(failures) == 1:
        name, finding = failures[0]
        return UserError(f"{workspace.root} ({name})", finding.message, " ".join(finding.fix.split()))
    details = "; ".join(f"{name}: {finding.message}" for name, finding in failures)
    return UserError(workspace.root, f"failed checks are {len(failures)} ({details}), expected 0", _FIX)
