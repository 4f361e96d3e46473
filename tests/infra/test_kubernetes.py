"""Manifests and the job of a night, held against Kubernetes' own schemas; the worker, against a made-up API server."""

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import kubernetes_validate
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.templating import apply_values

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
POOL = json.loads((ROOT / "infra" / "work_pools" / "kubernetes.json").read_text())
SIDECARS = yaml.safe_load((KUBERNETES / "ray" / "night-node.yaml").read_text())["sidecars"]
VERSIONS = ("1.31", "1.37")
PHASES = ["base", "ray", "ray-gpu"]


def validate(manifest: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def build(phase: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What ``kubectl apply --kustomize`` would send, by kind and name."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", KUBERNETES / phase], check=True, capture_output=True, text=True, env={"HOME": "/nowhere"}
    )
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}


def ray_pods(manifests: dict[tuple[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    spec = manifests["RayCluster", "gleaner"]["spec"]
    groups = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in groups.items()}


def fill_in(**values: Any) -> dict[str, Any]:
    """The work pool's template with its defaults and ``values``."""
    fields = POOL["variables"]["properties"].items()
    defaults = {name: field["default"] for name, field in fields if "default" in field}
    configuration: dict[str, Any] = apply_values(POOL["job_configuration"], {**defaults, **values})
    return configuration


def render_job(**values: Any) -> dict[str, Any]:
    given = {"command": "prefect flow-run execute", "env": [], "labels": {}, "name": "night", **values}
    manifest: dict[str, Any] = fill_in(**given)["job_manifest"]
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["args"] = container["args"].split()  # the worker does both
    return manifest


@pytest.mark.parametrize("phase", PHASES)
def test_every_manifest_is_what_kubernetes_takes(phase: str) -> None:
    manifests = build(phase)
    for (kind, _), manifest in manifests.items():
        if kind != "RayCluster":  # its schema is KubeRay's; pods in it are Kubernetes'
            validate(manifest)
        if kind != "Namespace":
            assert manifest["metadata"]["namespace"] == "gleaner"
    if phase != "base":
        for pod in ray_pods(manifests).values():
            validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": pod})


@pytest.mark.parametrize("values", [{}, {"gpus": 0}, {"sidecars": SIDECARS}])
def test_the_job_of_a_night_is_what_kubernetes_takes(values: dict[str, Any]) -> None:
    validate(render_job(**values))


def test_no_night_and_no_ray_node_can_ask_kubernetes_for_anything_or_is_root() -> None:
    manifests = build("ray-gpu")
    night = render_job(sidecars=SIDECARS)["spec"]["template"]["spec"]
    for pod in (night, *ray_pods(manifests).values()):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
    rules = manifests["Role", "gleaner-worker"]["rules"]
    writes = {resource for rule in rules if {"create", "delete"} & set(rule["verbs"]) for resource in rule["resources"]}
    assert writes == {"jobs"}


def test_ray_asks_for_a_token_and_only_nodes_and_nights_reach_it() -> None:
    manifests = build("ray")
    cluster = manifests["RayCluster", "gleaner"]
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "gleaner-ray"}
    policy = manifests["NetworkPolicy", "gleaner-ray"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    night = render_job()["spec"]["template"]["metadata"]["labels"]
    allowed = [one["podSelector"]["matchLabels"] for one in policy["ingress"][0]["from"]]
    assert allowed == [{"ray.io/cluster": "gleaner"}, night]


def test_all_of_ray_is_one_release_and_one_image_with_the_same_folders() -> None:
    manifests = build("ray")
    version = manifests["RayCluster", "gleaner"]["spec"]["rayVersion"]
    assert f"\nray=={version} " in (ROOT / "requirements.lock").read_text()
    pods = [*ray_pods(manifests).values(), {"containers": SIDECARS}, render_job()["spec"]["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] == "gleaner:latest"
        places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert places.items() >= {"campaigns": "/srv/gleaner", "shm": "/dev/shm"}.items()


def test_only_the_gpu_phase_asks_for_gpus() -> None:
    nodes = ray_pods(build("ray-gpu"))["nodes"]
    assert nodes["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert nodes["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "nvidia" not in json.dumps([one for phase in ("base", "ray") for one in build(phase).values()])


def test_an_evicted_night_starts_anew_and_a_failed_one_does_not() -> None:
    spec = render_job()["spec"]
    ignored, failed = spec["podFailurePolicy"]["rules"]  # the first that fits decides
    assert (ignored["action"], ignored["onPodConditions"]) == (
        "Ignore",
        [{"type": "DisruptionTarget", "status": "True"}],
    )
    assert failed["action"] == "FailJob"
    assert failed["onExitCodes"]["containerName"] == spec["template"]["spec"]["containers"][0]["name"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # a failure policy demands it
    assert spec["backoffLimit"] == 2


class ApiServer(BaseHTTPRequestHandler):
    """Takes jobs; the first request meets a fault."""

    requests: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.path, body))
        is_first = len(self.requests) == 1
        answer = {"message": "etcd has no leader"} if is_first else body | {"metadata": {"name": "night-x7c2p"}}
        self.send_response(500 if is_first else 201)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api_server() -> Iterator[str]:
    ApiServer.requests.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), ApiServer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


async def submit(url: str) -> None:
    """Start a night as Prefect's worker does."""
    from prefect_kubernetes.credentials import KubernetesClusterConfig
    from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

    cluster = KubernetesClusterConfig(
        context_name="test",
        config={
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        },
    )
    configuration = KubernetesWorkerJobConfiguration.model_validate(fill_in(name="night", sidecars=SIDECARS))
    configuration.cluster_config = cluster
    flow_run = FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="night")
    configuration.prepare_for_flow_run(flow_run)
    worker = KubernetesWorker(work_pool_name="gpu")
    await worker.run(flow_run, configuration)


@pytest.mark.integration
def test_the_worker_submits_a_night_again_after_a_fault_and_leaves_evictions_to_kubernetes(
    api_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nothing of this asks it
    for name in ("DELAY_SECONDS", "JITTER_MAX_SECONDS"):
        monkeypatch.setenv(f"PREFECT_INTEGRATIONS_KUBERNETES_WORKER_CREATE_JOB_RETRY_{name}", "0")
    asyncio.run(submit(api_server))
    (first_path, first), (path, job) = ApiServer.requests
    assert (first_path, first) == (path, job)
    assert path == "/apis/batch/v1/namespaces/gleaner/jobs"
    validate({"apiVersion": "batch/v1", "kind": "Job", **job})
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][:3] == ["prefect", "flow-run", "execute"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    # At SIGTERM the run stays as it is, and the pod that Kubernetes starts next goes on with it.
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "relinquish"
