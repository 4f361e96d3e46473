"""Check services: DVC's remote, MLflow, the label provider, Prefect's schedule, the detector and the Ray cluster.

What may hang or break the caller is tried in a separate process, which can be stopped. So are the few steps of the
detector from which ``estimate_night`` says how long a night will take.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.annotation.batches import all_annotation_batches
from flows.annotation.providers import create_provider
from flows.annotation.providers.base import LabelProvider
from flows.preflight.runner import CheckContext, CheckSkipped, Finding, failed, passed, warned
from flows.runtime.process_env import has_prefect_server, redact, tracking_uri
from flows.runtime.subprocess import ProcessTimeout, run_captured
from flows.workspace import git
from flows.workspace.dvc import dvc_env, has_default_remote
from flows.workspace.trust import TRUST_HINT, is_trusted
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError
from tasks.runtime.extensions import is_class_path

REMOTE_LIMIT_S = 60.0
TRACKING_LIMIT_S = 60.0
DETECTOR_LIMIT_S = 240.0
_MIB = 1 << 20
_SHORT_TIMEOUT_ENV = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
_HEARTBEAT_TIMEOUT = timedelta(minutes=2)  # workers and served flows report every 10 to 30 s
_START_HINT = "Start it: prefect worker start --pool POOL, or gleaner schedule."


def check_remote(context: CheckContext) -> Finding:
    """Check that an object can be written, read and deleted in DVC's default remote."""
    root = context.workspace.root
    if not has_default_remote(root):
        return warned(
            "no DVC remote: images, detections and models are on this disk only",
            "Set one up: dvc remote add --default NAME URL; the next run pushes everything.",
        )
    try:
        result = run_probe("flows.preflight.probes", ["remote"], cwd=root, limit_s=REMOTE_LIMIT_S - 5)
    except UserError as error:
        from flows.workspace.dvc_cache import ignored_remote_settings  # DVC's Python takes a second to import

        ignored = ignored_remote_settings(root)
        hint = f" Not used: {', '.join(ignored)}. {TRUST_HINT}" if ignored else ""
        fix = f"Check address, credentials (AWS_*) and permissions; dvc push shows the error.{hint}"
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
            "flows.preflight.probes", ["tracking"], cwd=root, limit_s=TRACKING_LIMIT_S - 5, env=_SHORT_TIMEOUT_ENV
        )
    except UserError as error:
        fix = "Start MLflow, or correct MLFLOW_TRACKING_URI; a run would derive the round and stop before its tag."
        return failed(f"{uri} is not writable ({error.problem})", fix)
    if result["owner_problem"]:
        return failed(result["owner_problem"], result["owner_fix"])
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
    section = context.raw_params.get("provider")
    kind = str(section.get("kind")) if isinstance(section, dict) else ""
    if is_class_path(kind) and not is_trusted(context.workspace.root):
        raise CheckSkipped(f"provider.kind names a class, which is code of the campaign. {TRUST_HINT}")
    try:
        return create_provider(context.workspace, context.params)
    except UserError as error:
        if error.where == str(context.workspace.params):
            raise CheckSkipped("params.yaml is broken") from None
        raise


def check_schedule(context: CheckContext) -> Finding:
    """Check that Prefect's server has an active deployment with a planned run of this campaign."""
    if not has_prefect_server():
        return warned(
            "PREFECT_API_URL is not set: rounds run only when a person or cron starts gleaner run",
            "With cron nothing is to do. Otherwise set PREFECT_API_URL and deploy; see docs/operations.md.",
        )
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        try:
            client.api_healthcheck()
            deployments = [
                found for found in client.read_deployments(limit=200) if _is_for_campaign(found, context.workspace.root)
            ]
            return _deployment_status(client, deployments)
        except Exception as error:  # httpx, Prefect and validation errors alike: the server does not do its part
            message = redact((str(error).splitlines() or [type(error).__name__])[0])
            return failed(
                f"Prefect's server does not answer ({message})",
                "Start it, or correct PREFECT_API_URL and PREFECT_API_KEY.",
            )


def _is_for_campaign(deployment: Any, root: Path) -> bool:
    """Tell whether a deployment runs this campaign."""
    root_parameter = deployment.parameters.get("root")
    return isinstance(root_parameter, str) and Path(root_parameter).resolve() == root.resolve()


def _deployment_status(client: Any, deployments: list[Any]) -> Finding:
    if not deployments:
        return warned("Prefect knows no deployment of this campaign", "Deploy it; see docs/operations.md.")
    active = [found for found in deployments if not found.paused and any(s.active for s in found.schedules)]
    if not active:
        names = ", ".join(found.name for found in deployments)
        return warned(f"no schedule of {names} is active", "Switch it on: prefect deployment schedule ls DEPLOYMENT.")
    deployment = active[0]
    problem = _worker_problem(client, deployment)
    if problem:
        return failed(problem, _START_HINT)
    planned = _next_run(client, deployment)
    if planned is None:
        fix = "Restart Prefect's server and look for errors of its scheduler; SQLAlchemy 2.1 stops it silently."
        return failed(f"the schedule of {deployment.name} is active and nothing is planned", fix)
    return passed(f"{deployment.name}: next run at {planned.isoformat(timespec='minutes')}, a worker is active")


def _worker_problem(client: Any, deployment: Any) -> str | None:
    """Return the problem of the worker or runner of the deployment; empty if there is none."""
    if deployment.work_pool_name is None:  # gleaner schedule
        last_polled = deployment.last_polled
        return (
            None
            if _is_recent(last_polled)
            else f"no runner serves {deployment.name} (last seen: {last_polled or 'never'})"
        )
    pool = deployment.work_pool_name
    workers = client.read_workers_for_work_pool(pool)
    if any(_is_recent(worker.last_heartbeat_time) for worker in workers):
        return None
    return f"no worker of the pool {pool} has polled in the last {_HEARTBEAT_TIMEOUT.seconds // 60} minutes"


def _is_recent(moment: datetime | None) -> bool:
    return moment is not None and datetime.now(UTC) - moment < _HEARTBEAT_TIMEOUT


def _next_run(client: Any, deployment: Any) -> datetime | None:
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    planned = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    return planned[0].expected_start_time if planned else None


def run_probe(
    module: str, arguments: Sequence[str], *, cwd: Path, limit_s: float, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run ``python -m <module>`` and return the JSON object on its last line.

    Args:
        module: has a ``main`` that prints one JSON object.
        arguments: of the command line.
        cwd: folder to run in.
        limit_s: it is killed after this.
        env: changes to the environment.

    Raises:
        UserError: it ended badly or took too long; carries its last line, without secrets.
    """
    command = [sys.executable, "-m", module, *arguments]
    probe_env = {**dvc_env(), "PYTHONWARNINGS": "ignore", **(env or {})}
    try:
        process = run_captured(command, cwd=cwd, env=probe_env, limit_s=limit_s)
    except ProcessTimeout:
        raise UserError(module, f"the answer took more than {limit_s:g} s, expected it sooner") from None
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    if process.returncode:
        last_line = redact(lines[-1].strip()) if lines else f"it ended with code {process.returncode}"
        raise UserError(module, f"{last_line.rstrip('.')}")
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


CLUSTER_LIMIT_S = 240.0


def check_cluster(context: CheckContext) -> Finding:
    """Check token, versions, room for workers, and that every node sees the campaign's files and has the same code."""
    try:
        params = context.params.infer
    except UserError:
        raise CheckSkipped("params.yaml is broken") from None
    if params.engine == "local":
        return passed("infer.engine is local: no cluster is used")
    try:
        facts = run_probe("tasks.model.engines.ray_probe", [], cwd=context.workspace.root, limit_s=CLUSTER_LIMIT_S - 5)
    except UserError as error:
        return failed(error.problem, "docs/guides/scale.md says how a cluster is started and joined.")
    found = f"Ray {facts['version']}, {facts['nodes']}"
    if facts["problems"]:
        more = f" and {len(facts['problems']) - 1} more" if len(facts["problems"]) > 1 else ""
        return failed(f"{facts['problems'][0]}{more}; {found}", "Use one image and one shared folder on all nodes.")
    if not facts["workers"]:
        fix = "Lower infer.engine_cpus_per_worker, or start nodes with more CPUs: inference would wait until it ends."
        return failed(f"no node has room for a worker; {found}", fix)
    if params.engine_workers != "auto" and facts["workers"] < params.engine_workers:
        fix = "Lower infer.engine_workers, or let nodes join: they are used as soon as they are there."
        return warned(f"room for {facts['workers']} of {params.engine_workers} workers; {found}", fix)
    return passed(f"{found}: room for {facts['workers']} workers, all nodes see the campaign")


_LIMIT_S = 1200.0
_STAGES = ("prepare", "train", "evaluate", "infer")


def estimate_night(workspace: Workspace) -> dict[str, Any]:
    """Measure in a process of its own; ``tasks.model.night_estimate`` says what it returns.

    Raises:
        UserError: weights or images are missing or broken, or it took too long.
    """
    return run_probe("tasks.model.night_estimate", [], cwd=workspace.root, limit_s=_LIMIT_S)


def describe_night(estimate: dict[str, Any]) -> list[str]:
    """Return the lines that ``gleaner doctor`` prints: minutes by stage, and what they were measured from."""
    minutes, counts, measured = estimate["minutes"], estimate["counts"], estimate["measured"]
    pretraining_s = measured.get("pretraining_step_s")
    work = {
        "prepare": f"{counts['pool_images']:,} images at {_seconds(measured['decoded_image_s'])}",
        "train": (
            f"{counts['supervised_steps']:,} supervised steps at {_seconds(measured['supervised_step_s'])}, "
            f"{counts['semi_supervised_steps']:,} with unlabeled images at "
            f"{_seconds(measured['semi_supervised_step_s'])}, {counts['scored_images']:,} images scored between"
            + (f", steps of pretraining at {_seconds(pretraining_s)}" if pretraining_s else "")
        ),
        "evaluate": f"{counts['validation_images']:,} images, two models, at {_seconds(measured['inference_image_s'])}",
        "infer": f"{counts['pool_images']:,} images at {_seconds(measured['inference_image_s'])}",
    }
    lines = [f"{stage:>9}  {_minutes(minutes[stage]):>10}  {work[stage]}" for stage in _STAGES]
    total = f"{'together':>9}  {_minutes(estimate['total_minutes']):>10}"
    origin = f"measured on {estimate['device']}: {measured['steps']} steps, {measured['inferred_images']} images"
    return [*lines, f"{total}  {origin}; the other stages compute on tables and are not measured"]


def _minutes(minutes: float) -> str:
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.1f} min"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
