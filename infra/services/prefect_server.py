"""The Prefect server, its state in PostgreSQL: the scheduler, the queue and the page the operator looks at."""

import sys
from functools import partial
from pathlib import Path

from infra.services.http import require_http_ok
from infra.services.ports import LOOPBACK
from infra.services.service import Service

DATABASE = "prefect"


def prefect_server(folder: Path, port: int, database_url: str) -> Service:
    """A Prefect server; ready when it reaches its database. ``database_url`` is for the driver asyncpg."""
    url = f"http://{LOOPBACK}:{port}"
    return Service(
        name="prefect",
        folder=folder,
        ports=(port,),
        url=url,
        command=(sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)),
        check_ready=partial(require_http_ok, f"{url}/api/ready"),
        env={
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url,
            "PREFECT_UI_API_URL": f"{url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        },
        start_timeout_s=120,
    )
