"""Real servers for tests: started once a session on free ports, with their data in a folder of their own.

A test that uses one gets the marker ``services``. Where the program is not installed it skips and says so; with
GLEANER_REQUIRE_SERVICES=1, as in CI, it fails.
"""

import json
import os
import secrets
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.services import mlflow_server as mlflow
from infra.services import prefect_server as prefect
from infra.services import processes
from infra.services.object_store import NUM_PORTS, REGION, S3Key, object_store, s3_client
from infra.services.ports import free_ports
from infra.services.postgres import Database, create_databases, find_bin_dir, postgres
from infra.services.service import LocalServiceError, Service


def skip_or_fail(reason: str) -> None:
    """Skip a test whose program is not installed; where all must be there, fail it."""
    if os.environ.get("GLEANER_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{reason} (GLEANER_REQUIRE_SERVICES=1: skipping is not allowed)", pytrace=False)
    pytest.skip(reason)


@contextmanager
def running_service(service: Service) -> Iterator[Service]:
    """The service at work; at the end it is killed, since nobody wants its data."""
    service.prepare()
    log = service.folder.parent / f"{service.name}.log"
    process = processes.start(service, log, die_with_parent=True)
    try:
        processes.wait_until_ready(service, process, log)
        yield service
    finally:
        processes.kill(process)


@contextmanager
def traversable_folder() -> Iterator[Path]:
    """A folder everybody may enter: pytest's own are closed to the user PostgreSQL runs as."""
    folder = Path(tempfile.mkdtemp(prefix="gleaner-services-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class S3Server:
    """A running S3 server."""

    url: str
    key: S3Key
    inner_environment: Mapping[str, str]
    """Certificates for its inner ports."""

    def environment(self) -> dict[str, str]:
        """The variables by which boto3, DVC and Gleaner find it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.key.access,
            "AWS_SECRET_ACCESS_KEY": self.key.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_S3_ENDPOINT_URL": self.url,
        }

    def set_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set those variables for one test."""
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)

    def client(self) -> Any:
        """A boto3 client of it."""
        return s3_client(self.url, self.key)

    def new_bucket(self) -> str:
        """A bucket nobody else has."""
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name


def call_prefect_api(prefect_url: str, path: str, **body: Any) -> Any:
    """One call of Prefect's REST API: a test shares no settings with the processes it watches."""
    request = urllib.request.Request(
        f"{prefect_url}/api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server (SeaweedFS); one for all tests, so each takes a ``new_bucket``."""
    key = S3Key("test-access-key", secrets.token_urlsafe(24))
    with traversable_folder() as folder:
        data = folder / "s3"
        data.mkdir()
        service = object_store(data, free_ports(NUM_PORTS), key)
        try:
            with running_service(service):
                inner = {name: value for name, value in service.env.items() if name.startswith("WEED_GRPC")}
                yield S3Server(service.url, key, inner)
        finally:
            for port in service.ports:  # SeaweedFS leaves its sockets behind when it is killed
                for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    path.unlink()


def require_postgres() -> None:
    """Skip, or fail, a test where PostgreSQL's programs are not installed."""
    try:
        find_bin_dir()
    except LocalServiceError as error:
        skip_or_fail(str(error))


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[Database]:
    """A PostgreSQL cluster (Debian's)."""
    require_postgres()
    database = Database(free_ports(), secrets.token_urlsafe(24))
    with traversable_folder() as folder:
        data = folder / "postgres"
        data.mkdir()
        with running_service(postgres(data, database, ())):
            yield database


@pytest.fixture(scope="session")
def prefect_url(postgres_database: Database) -> Iterator[str]:
    """Base URL of a Prefect server on PostgreSQL; its API is below ``/api``."""
    create_databases(postgres_database, (prefect.DATABASE,))
    with traversable_folder() as folder:
        (folder / "prefect").mkdir()
        database_url = postgres_database.url(prefect.DATABASE, "asyncpg")
        with running_service(prefect.prefect_server(folder / "prefect", free_ports(), database_url)) as service:
            yield service.url


@pytest.fixture(scope="session")
def mlflow_url(postgres_database: Database, s3_server: S3Server) -> Iterator[str]:
    """URL of an MLflow server on PostgreSQL that keeps artifacts in the S3 server."""
    create_databases(postgres_database, (mlflow.DATABASE,))
    with traversable_folder() as folder:
        (folder / "mlflow").mkdir()
        database_url = postgres_database.url(mlflow.DATABASE, "psycopg2")
        service = mlflow.mlflow_server(folder / "mlflow", free_ports(), database_url, s3_server.url, s3_server.key)
        with running_service(service):
            yield service.url


@pytest.fixture
def postgres_url(postgres_database: Database) -> str:
    """URL of an empty database of one's own."""
    name = f"test_{secrets.token_hex(6)}"
    create_databases(postgres_database, (name,))
    return postgres_database.url(name)
