"""Up, down and status of all services together."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from infra.stack import mlflow_server, prefect_server, processes
from infra.stack.object_store import object_store
from infra.stack.ports import require_free
from infra.stack.postgres import postgres
from infra.stack.service import NotReady, Service, StackError
from infra.stack.settings import Settings


@dataclass(frozen=True)
class Condition:
    """One service, now."""

    name: str
    state: str
    """``running``, ``stopped`` or ``ill``: the process is there and does not do its work."""
    url: str
    words: str
    """What it answered where it is ill, how long it took where it was started; otherwise empty."""


def services(settings: Settings) -> list[Service]:
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


def up(settings: Settings, tell: Callable[[Condition], None]) -> None:
    """Start what does not run; what runs is asked whether it works and left alone.

    Raises:
        StackError: a port is taken, a program is missing, or a server does not start. What runs stays running.
    """
    with _alone(settings.folder):
        for service in services(settings):
            tell(_up(settings, service))


def down(settings: Settings, tell: Callable[[Condition], None]) -> None:
    """Stop all, the last one first; their data stay. What is stopped already is passed over."""
    with _alone(settings.folder):
        for service in reversed(services(settings)):
            by_itself = processes.end(_record(settings, service), service.stop_signal, service.stop_patience_s)
            words = "" if by_itself else f"killed after {service.stop_patience_s:.0f} s"
            tell(Condition(service.name, "stopped", service.url, words))


def status(settings: Settings) -> Iterator[Condition]:
    """Ask each service for some real work."""
    for service in services(settings):
        alive = processes.running(_record(settings, service))
        yield _condition(service) if alive else Condition(service.name, "stopped", service.url, "")


def log_of(settings: Settings, name: str) -> Path:
    """All a service said, in every run."""
    return settings.folder / "logs" / f"{name}.log"


def _up(settings: Settings, service: Service) -> Condition:
    record, log = _record(settings, service), log_of(settings, service.name)
    if processes.running(record):
        condition = _condition(service)
        if condition.state == "ill":
            problem = f"it runs and answers {condition.words!r}, expected it to work"
            raise StackError(service.name, problem, f"Its log: {log}. make stack-down && make stack starts it afresh.")
        return condition
    processes.end(record, service.stop_signal, 0)  # what a killed server left behind
    require_free(service.name, service.ports)
    service.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    service.prepare()
    begun_s = time.monotonic()
    process = processes.start(service, log)
    processes.remember(record, process.pid)
    processes.wait_until_ready(service, process, log)
    words = f"ready after {time.monotonic() - begun_s:.0f} s"
    return Condition(service.name, "running", service.url, words)


def _condition(service: Service) -> Condition:
    try:
        service.ready()
    except NotReady as error:
        return Condition(service.name, "ill", service.url, str(error))
    return Condition(service.name, "running", service.url, "")


def _record(settings: Settings, service: Service) -> Path:
    return settings.folder / "run" / service.name


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise StackError(folder, "another make stack is at work, expected one at a time", "Let it finish.") from None
