"""What Docker, Kubernetes and Prefect read, held against what ``make services-up`` does and what Prefect knows."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import prefect
import pytest
import yaml
from jsonschema import Draft7Validator
from prefect.utilities.templating import apply_values, find_placeholders

from infra.services.settings import SERVICES, load_or_create
from infra.services.stack import build_services

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
POOLS = ROOT / "infra" / "work_pools"
WORKER_METADATA = json.loads(
    (Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json").read_text()
)


def env_placeholders(content: Any) -> set[str]:
    return set(re.findall(r"(?<!\$)\$\{(\w+)", json.dumps(content)))


def test_compose_has_the_services_of_the_stack_and_a_worker() -> None:
    assert set(COMPOSE["services"]) == {*SERVICES, "worker", "ray-head", "ray-node"}
    assert COMPOSE["services"]["worker"]["profiles"] == ["worker"]
    assert COMPOSE["services"]["ray-head"]["profiles"] == COMPOSE["services"]["ray-node"]["profiles"] == ["ray"]
    assert all("healthcheck" in COMPOSE["services"][name] for name in SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_compose_publishes_a_service_on_loopback_only_at_the_stacks_port(name: str) -> None:
    (published,) = COMPOSE["services"][name]["ports"]
    assert published.startswith(f"127.0.0.1:${{GLEANER_{name.upper()}_PORT:?}}:")


def test_compose_asks_for_nothing_that_the_sourced_file_does_not_have(tmp_path: Path) -> None:
    base_image = {"GLEANER_BASE_IMAGE"}  # a choice of whoever builds, with a default
    assert env_placeholders(COMPOSE) - base_image <= set(load_or_create(tmp_path, {}).environment())
    assert not re.search(r"(PASSWORD|SECRET_ACCESS_KEY): +[^$\s]", (ROOT / "infra/compose.yaml").read_text())


def test_every_ray_process_of_compose_asks_for_the_token_and_only_the_dashboard_is_published_on_loopback() -> None:
    services = COMPOSE["services"]
    for name in ("worker", "ray-head", "ray-node"):
        settings = services[name]["environment"]
        assert (settings["RAY_AUTH_MODE"], settings["RAY_AUTH_TOKEN"]) == ("token", "${RAY_AUTH_TOKEN:?}"), name
    assert services["ray-head"]["ports"] == ["127.0.0.1:8265:8265"]
    assert "ports" not in services["ray-node"]
    assert "--num-cpus=0" in services["ray-head"]["command"]  # the head deals out and computes nothing


def test_only_the_gpu_file_asks_for_a_gpu() -> None:
    overlay = yaml.safe_load((ROOT / "infra" / "compose.gpu.yaml").read_text())
    assert set(overlay["services"]) == {"worker", "ray-node"}
    for service in overlay["services"].values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
    assert "nvidia" not in json.dumps(COMPOSE)


@pytest.mark.services
def test_compose_starts_the_servers_with_the_stacks_own_flags(tmp_path: Path) -> None:
    """Addresses and ports differ inside of containers; all else must not."""
    own = {service.name: service for service in build_services(load_or_create(tmp_path, {}))}
    place = re.compile(r"--?(dir|ip|(s3\.)?ip\.bind|host|port|[a-z3]+\.port(\.grpc)?|allowed-hosts)$")
    for name in ("s3", "mlflow", "prefect"):
        there = shlex.split(COMPOSE["services"][name]["command"])
        assert options(there, place) == options(list(own[name].command), place), name
        assert {
            key for key in own[name].env if key.startswith(("PREFECT_SERVER_DATABASE", "MLFLOW_S", "MLFLOW_B"))
        } <= set(COMPOSE["services"][name]["environment"])


def options(command: list[str], ignored_flags: re.Pattern[str]) -> set[str]:
    joined = re.sub(r"(--[\w-]+) (?!-)", r"\1=", " ".join(command))
    return {word for word in joined.split() if word.startswith("-") and not ignored_flags.match(word.split("=")[0])} - {
        "-m"
    }


def test_every_file_the_image_copies_is_there() -> None:
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
    sources = [source for line in copied for source in line.split()[:-1]]
    forced = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    made = re.findall(r"touch (.+?) *\\\\?$", dockerfile, re.MULTILINE)
    needed = {"Makefile", "requirements.lock", "pyproject.toml", *forced["force-include"]}  # by make setup
    assert needed <= {*sources, *" ".join(made).split()}
    assert all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv*", ".stack"} <= set(ignored)  # no history, no other machine's programs, no secrets


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
class TestWorkPools:
    def test_every_placeholder_is_a_variable_and_every_variable_used(self, kind: str) -> None:
        template = json.loads((POOLS / f"{kind}.json").read_text())
        used = {placeholder.name for placeholder in find_placeholders(template["job_configuration"])}
        assert used == set(template["variables"]["properties"])
        Draft7Validator.check_schema(template["variables"])
        defaults = {
            name: field["default"] for name, field in template["variables"]["properties"].items() if "default" in field
        }
        Draft7Validator(template["variables"]).validate(defaults)

    def test_it_sets_only_what_prefects_worker_knows(self, kind: str) -> None:
        template = json.loads((POOLS / f"{kind}.json").read_text())
        known = WORKER_METADATA[f"prefect-{kind}"][kind]["default_base_job_configuration"]["job_configuration"]
        assert set(template["job_configuration"]) <= {*known, "container_create_kwargs"}


def render_job(kind: str, **values: Any) -> dict[str, Any]:
    """The job as a worker makes it of the template's defaults."""
    template = json.loads((POOLS / f"{kind}.json").read_text())
    fields = template["variables"]["properties"].items()
    defaults = {name: field["default"] for name, field in fields if "default" in field}
    job: dict[str, Any] = apply_values(template["job_configuration"], {**defaults, **values})
    return job


def test_a_docker_run_gets_a_gpu() -> None:
    (request,) = render_job("docker")["container_create_kwargs"]["device_requests"]
    assert request == {"driver": "nvidia", "count": 1, "capabilities": [["gpu"]]}
    assert "mem_limit" not in render_job("docker")
    assert render_job("docker", gpus=-1)["container_create_kwargs"]["device_requests"][0]["count"] == -1


def test_a_kubernetes_run_gets_a_gpu_and_time_to_keep_its_checkpoint() -> None:
    spec = render_job("kubernetes", gpus=2)["job_manifest"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 2}
    assert pod["terminationGracePeriodSeconds"] >= 30
    mounts, volumes = container["volumeMounts"], pod["volumes"]
    assert {mount["name"] for mount in mounts} == {volume["name"] for volume in volumes}


def test_the_deployments_ask_for_pools_that_are_explained() -> None:
    text = (ROOT / "prefect.yaml").read_text()
    content = yaml.safe_load(text)
    for deployment in content["deployments"]:
        pool = deployment["work_pool"]["name"]
        assert f"prefect work-pool create {pool} --type" in text
        assert all(schedule["timezone"] for schedule in deployment["schedules"])
        module, _, flow = deployment["entrypoint"].rpartition(".")
        script = f"from {module} import {flow}"
        subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=ROOT, check=True)
