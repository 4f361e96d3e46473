"""Up, down and status of all services together."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from infra.services import mlflow_server, prefect_server, processes
from infra.services.object_store import object_store
from infra.services.ports import require_ports_free
from infra.services.postgres import postgres
from infra.services.service import LocalServiceError, NotReady, Service
from infra.services.settings import Settings


@dataclass(frozen=True)
class ServiceStatus:
    """One service, now."""

    name: str
    state: str
    """``running``, ``stopped`` or ``unhealthy``: the process is there and does not do its work."""
    url: str
    detail: str
    """What it answered where it is unhealthy, how long it took where it was started; otherwise empty."""


def build_services(settings: Settings) -> list[Service]:
    """All of them, each after those it needs."""
    database, key, ports = settings.database, settings.s3_key, settings.ports
    tracking_url = database.url(mlflow_server.DATABASE, "psycopg2")
    prefect_url = database.url(prefect_server.DATABASE, "asyncpg")
    folder = settings.service_folder
    names = (mlflow_server.DATABASE, prefect_server.DATABASE)
    return [
        postgres(folder("postgres"), database, names),
        object_store(folder("s3"), ports["s3"], key),
        mlflow_server.mlflow_server(folder("mlflow"), ports["mlflow"], tracking_url, settings.s3_url, key),
        prefect_server.prefect_server(folder("prefect"), ports["prefect"], prefect_url),
    ]


def up(settings: Settings, on_status: Callable[[ServiceStatus], None]) -> None:
    """Start what does not run; what runs is asked whether it works and left alone.

    Raises:
        LocalServiceError: a port is taken, a program is missing, or a server does not start. What runs stays running.
    """
    with _lock(settings.folder):
        for service in build_services(settings):
            on_status(_start(settings, service))


def down(settings: Settings, on_status: Callable[[ServiceStatus], None]) -> None:
    """Stop all, the last one first; their data stay. What is stopped already is passed over."""
    with _lock(settings.folder):
        for service in reversed(build_services(settings)):
            has_exited = processes.stop(_pid_file(settings, service), service.stop_signal, service.stop_timeout_s)
            detail = "" if has_exited else f"killed after {service.stop_timeout_s:.0f} s"
            on_status(ServiceStatus(service.name, "stopped", service.url, detail))


def status(settings: Settings) -> Iterator[ServiceStatus]:
    """Ask each service for some real work."""
    for service in build_services(settings):
        pid = processes.running_pid(_pid_file(settings, service))
        yield _probe(service) if pid else ServiceStatus(service.name, "stopped", service.url, "")


def log_file(settings: Settings, name: str) -> Path:
    """All a service said, in every run."""
    return settings.folder / "logs" / f"{name}.log"


def _start(settings: Settings, service: Service) -> ServiceStatus:
    pid_file, log = _pid_file(settings, service), log_file(settings, service.name)
    if processes.running_pid(pid_file):
        service_status = _probe(service)
        if service_status.state == "unhealthy":
            problem = f"it runs and answers {service_status.detail!r}, expected it to work"
            raise LocalServiceError(
                service.name, problem, f"Its log: {log}. make services-down && make services-up starts it afresh."
            )
        return service_status
    processes.stop(pid_file, service.stop_signal, 0)  # what a killed server left behind
    require_ports_free(service.name, service.ports)
    service.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    service.prepare()
    started_s = time.monotonic()
    process = processes.start(service, log)
    processes.write_pid_file(pid_file, process.pid)
    processes.wait_until_ready(service, process, log)
    detail = f"ready after {time.monotonic() - started_s:.0f} s"
    return ServiceStatus(service.name, "running", service.url, detail)


def _probe(service: Service) -> ServiceStatus:
    try:
        service.check_ready()
    except NotReady as error:
        return ServiceStatus(service.name, "unhealthy", service.url, str(error))
    return ServiceStatus(service.name, "running", service.url, "")


def _pid_file(settings: Settings, service: Service) -> Path:
    return settings.folder / "run" / service.name


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise LocalServiceError(
            folder, "another make services-up is at work, expected one at a time", "Let it finish."
        ) from None
