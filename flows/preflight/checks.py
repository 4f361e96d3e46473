"""List all checks, in the order in which the table shows them."""

from flows.preflight import data, machine, parameters, repository, schedule, services
from flows.preflight.result import Check

_FAST_LIMIT_S = 20.0
_SLOW_LIMIT_S = 60.0

CHECKS = (
    Check("parameters", parameters.check_parameters, _FAST_LIMIT_S, quick=True),
    Check("classes", parameters.check_classes, _FAST_LIMIT_S, quick=True),
    Check("labels", data.check_labels, _SLOW_LIMIT_S),
    Check("fixed sets", data.check_fixed_sets, _FAST_LIMIT_S),
    Check("images", data.check_images, _SLOW_LIMIT_S),
    Check("pool", data.check_pool, _FAST_LIMIT_S),
    Check("detector", services.check_detector, services.DETECTOR_LIMIT_S),
    Check("disk", machine.check_disk, _FAST_LIMIT_S, quick=True),
    Check("memory", machine.check_memory, _FAST_LIMIT_S, quick=True),
    Check("GPU", machine.check_gpu, _FAST_LIMIT_S, quick=True),
    Check("clock", machine.check_clock, _FAST_LIMIT_S),
    Check("versions", machine.check_versions, _FAST_LIMIT_S, quick=True),
    Check("branch", repository.check_branch, _FAST_LIMIT_S, quick=True),
    Check("changes", repository.check_uncommitted, _FAST_LIMIT_S),
    Check("rounds", repository.check_rounds, _FAST_LIMIT_S),
    Check("remote", services.check_remote, services.REMOTE_LIMIT_S),
    Check("MLflow", services.check_tracking, services.TRACKING_LIMIT_S),
    Check("annotators", services.check_provider, _SLOW_LIMIT_S),
    Check("open work", services.check_open_work, _SLOW_LIMIT_S),
    Check("schedule", schedule.check_schedule, _SLOW_LIMIT_S),
)
