"""What one stack keeps: its folder, its ports and the credentials that were made for it."""

import json
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from infra.services.object_store import NUM_PORTS as S3_PORTS
from infra.services.object_store import REGION, S3Key
from infra.services.ports import LOOPBACK
from infra.services.postgres import ROLE, Database
from infra.services.private import write_private
from infra.services.service import LocalServiceError
from tasks.storage import files

# Outside of 8000 to 8999, where Prefect puts its temporary servers. The S3 server takes the seven after its own, too.
DEFAULT_PORTS = {"postgres": 5433, "s3": 9710, "mlflow": 5000, "prefect": 4200}
SERVICES = tuple(DEFAULT_PORTS)
_PORT_MIN, _PORT_MAX = 1024, 65535


@dataclass(frozen=True)
class Settings:
    """One stack; kept in ``stack.json``, which only its owner may read."""

    folder: Path
    ports: Mapping[str, int]
    s3_key: S3Key
    postgres_password: str = field(repr=False)
    ray_token: str = field(repr=False)

    @property
    def env_file(self) -> Path:
        """What people source."""
        return self.folder / "env"

    @property
    def database(self) -> Database:
        """The PostgreSQL cluster."""
        return Database(self.ports["postgres"], self.postgres_password)

    @property
    def s3_url(self) -> str:
        """Endpoint of the S3 server."""
        return f"http://{LOOPBACK}:{self.ports['s3']}"

    def service_folder(self, name: str) -> Path:
        """Data of one service."""
        return self.folder / name

    def environment(self) -> dict[str, str]:
        """The variables by which Gleaner, DVC, boto3 and PostgreSQL's own programs find the services."""
        return {
            "PREFECT_API_URL": f"http://{LOOPBACK}:{self.ports['prefect']}/api",
            "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{self.ports['mlflow']}",
            "AWS_ENDPOINT_URL_S3": self.s3_url,
            "AWS_ACCESS_KEY_ID": self.s3_key.access,
            "AWS_SECRET_ACCESS_KEY": self.s3_key.secret,
            "AWS_DEFAULT_REGION": REGION,
            "PGHOST": LOOPBACK,
            "PGPORT": str(self.ports["postgres"]),
            "PGUSER": ROLE,
            "PGPASSWORD": self.postgres_password,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.ray_token,
            **{f"GLEANER_{name.upper()}_PORT": str(port) for name, port in self.ports.items()},  # infra/compose.yaml
        }


def load_or_create(folder: Path, ports: Mapping[str, int]) -> Settings:
    """The stack in ``folder``, a new one where there is none; ``ports`` replace those it had.

    Raises:
        LocalServiceError: a port belongs to no service, is out of range or given twice.
    """
    folder = folder.resolve()
    settings = load(folder)
    if settings is None:
        key = S3Key(f"gleaner-{secrets.token_hex(6)}", secrets.token_urlsafe(32))
        settings = Settings(folder, DEFAULT_PORTS, key, secrets.token_urlsafe(32), secrets.token_hex(32))
    settings = replace(settings, ports={**settings.ports, **ports})
    _check_ports(settings.ports)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # PostgreSQL may run as another user, who must pass; what is inside is private
    (folder / "logs").mkdir(mode=0o700, exist_ok=True)
    _save(settings)
    return settings


def load(folder: Path) -> Settings | None:
    """The stack in ``folder``, if one was made there."""
    path = folder.resolve() / "stack.json"
    if not path.is_file():
        return None
    stored = files.read_json(path)
    return Settings(
        folder.resolve(), stored["ports"], S3Key(**stored["s3_key"]), stored["postgres_password"], stored["ray_token"]
    )


def _save(settings: Settings) -> None:
    content = {
        "ports": dict(settings.ports),
        "s3_key": {"access": settings.s3_key.access, "secret": settings.s3_key.secret},
        "postgres_password": settings.postgres_password,
        "ray_token": settings.ray_token,
    }
    write_private(settings.folder / "stack.json", json.dumps(content, indent=2) + "\n")
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.environment().items()]
    write_private(settings.env_file, "# Made by make services-up; holds secrets.\n" + "\n".join(lines) + "\n")


def _check_ports(ports: Mapping[str, int]) -> None:
    owners: dict[int, str] = {}
    for name, port in ports.items():
        if name not in SERVICES:
            raise LocalServiceError("ports", f"the service is {name!r}, expected one of {list(SERVICES)}")
        if not _PORT_MIN <= port <= _PORT_MAX:
            raise LocalServiceError("ports", f"{name} is {port}, expected {_PORT_MIN} to {_PORT_MAX}")
        for required in range(port, port + (S3_PORTS if name == "s3" else 1)):
            if required in owners:
                first, second = sorted((name, owners[required]))
                raise LocalServiceError("ports", f"{first} and {second} both want port {required}, expected one each")
            owners[required] = name
