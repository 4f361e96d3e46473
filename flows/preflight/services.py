"""Check services: DVC's remote, MLflow, the label provider, and the detector in a separate process."""

import shutil

from flows.annotation.batches import all_annotation_batches
from flows.annotation.providers.base import LabelProvider
from flows.annotation.providers.factory import create_provider
from flows.preflight.context import CheckContext
from flows.preflight.probe_process import run_probe
from flows.preflight.result import CheckSkipped, Finding, failed, passed, warned
from flows.runtime.process_env import redact, tracking_uri
from flows.workspace import git
from flows.workspace.dvc import has_default_remote
from tasks.runtime.errors import UserError

REMOTE_LIMIT_S = 60.0
TRACKING_LIMIT_S = 60.0
DETECTOR_LIMIT_S = 240.0
_MIB = 1 << 20
_SHORT_TIMEOUT_ENV = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}


def check_remote(context: CheckContext) -> Finding:
    """Check that an object can be written, read and deleted in DVC's default remote."""
    root = context.workspace.root
    if not has_default_remote(root):
        return warned(
            "no DVC remote: images, detections and models are on this disk only",
            "Set one up: dvc remote add --default NAME URL; the next night pushes everything.",
        )
    try:
        result = run_probe("flows.preflight.probe_remote", [], cwd=root, limit_s=REMOTE_LIMIT_S - 5)
    except UserError as error:
        fix = "Check address, credentials (AWS_*) and permissions; dvc push says more."
        return failed(f"the default remote is not writable ({error.problem})", fix)
    unsent_rounds = _rounds_without_remote(context)
    if unsent_rounds:
        left_out = f"DVC leaves out {len(unsent_rounds)} rounds, the first is {unsent_rounds[0]}"
        message = f"{result['remote']} is writable, and {left_out}"
        fix = "They were published before it was set up; docs/operations.md, 'A remote that came later', sends them."
        return warned(message, fix)
    return passed(f"{result['remote']}: an object written, read and deleted in {result['seconds']} s")


def check_tracking(context: CheckContext) -> Finding:
    """Check that a run with an artifact can be written, read and deleted in MLflow."""
    root = context.workspace.root
    uri = redact(tracking_uri(root))
    try:
        result = run_probe(
            "flows.preflight.probe_tracking", [], cwd=root, limit_s=TRACKING_LIMIT_S - 5, env=_SHORT_TIMEOUT_ENV
        )
    except UserError as error:
        fix = "Start MLflow, or correct MLFLOW_TRACKING_URI; a night would derive the round and stop before its tag."
        return failed(f"{uri} is not writable ({error.problem})", fix)
    return passed(f"{uri}: a run written, read and deleted in {result['seconds']} s")


def check_provider(context: CheckContext) -> Finding:
    """Check that the label provider answers, accepts the token and can take a batch."""
    provider = _provider(context)
    provider.check()
    return passed(f"{provider.name} is ready")


def check_open_work(context: CheckContext) -> Finding:
    """Check that the provider knows the batches it was given."""
    provider = _provider(context)
    delivered = [delivery for delivery in all_annotation_batches(context.workspace) if delivery.state == "delivered"]
    if not delivered:
        return passed("nothing is with the annotators")
    lines = []
    for delivery in delivered:
        progress = provider.status(delivery)
        lines.append(f"batch {delivery.batch}: {progress.finished} of {progress.finished + progress.open} finished")
    return passed("; ".join(lines))


def check_detector(context: CheckContext) -> Finding:
    """Check that the newest weights load and detect boxes in one image, on the device that a run uses."""
    try:
        params = context.params
    except UserError:
        raise CheckSkipped("params.yaml is broken") from None
    del params
    result = run_probe("tasks.model.smoke_test", [], cwd=context.workspace.root, limit_s=DETECTOR_LIMIT_S - 5)
    message = (
        f"{result['weights']} loaded in {result['load_seconds']:.1f} s, one image in {result['forward_seconds']:.2f} s "
        f"on {result['device_name']}; {result['peak_memory_bytes'] // _MIB} MiB at the most"
    )
    if result["device"] == "cpu" and shutil.which("nvidia-smi"):
        fix = "The driver is too old for this torch, or CUDA_VISIBLE_DEVICES hides the GPU."
        return failed(f"{message}; this machine has an NVIDIA driver and torch sees no GPU", fix)
    return passed(message)


def _rounds_without_remote(context: CheckContext) -> list[str]:
    """Tags whose own DVC configuration names no remote: ``dvc push --all-tags`` reads each round's, and skips those."""
    root = context.workspace.root
    tags = git.run_git(root, "tag", "--list", "round-*").split()
    configs = git.run_git(root, "rev-parse", *(f"{tag}:.dvc/config" for tag in tags)).split() if tags else []
    has_remote = {blob: "remote" in git.run_git(root, "cat-file", "blob", blob) for blob in set(configs)}
    return [tag for tag, blob in zip(tags, configs, strict=True) if not has_remote[blob]]


def _provider(context: CheckContext) -> LabelProvider:
    try:
        return create_provider(context.workspace, context.params)
    except UserError as error:
        if error.where == str(context.workspace.params):
            raise CheckSkipped("params.yaml is broken") from None
        raise
