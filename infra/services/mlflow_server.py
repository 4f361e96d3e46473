"""The MLflow server: its records in PostgreSQL, models and reports in the S3 server, both reached through it.

Clients send artifacts to MLflow, so they need no credentials of the object store.
"""

import sys
from functools import partial
from pathlib import Path

from infra.services.http import require_http_ok
from infra.services.object_store import MLFLOW_BUCKET, REGION, S3Key
from infra.services.ports import LOOPBACK
from infra.services.service import Service

DATABASE = "mlflow"


def mlflow_server(folder: Path, port: int, database_url: str, s3_url: str, key: S3Key) -> Service:
    """An MLflow server; ready when it reads its database."""
    url = f"http://{LOOPBACK}:{port}"
    command = (sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "2")
    return Service(
        name="mlflow",
        folder=folder,
        ports=(port,),
        url=url,
        command=(*command, "--artifacts-destination", f"s3://{MLFLOW_BUCKET}/artifacts"),
        check_ready=partial(require_http_ok, f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0"),
        env={
            "MLFLOW_BACKEND_STORE_URI": database_url,  # not in the command, which everybody on the machine can read
            "MLFLOW_S3_ENDPOINT_URL": s3_url,
            "AWS_ACCESS_KEY_ID": key.access,
            "AWS_SECRET_ACCESS_KEY": key.secret,
            "AWS_DEFAULT_REGION": REGION,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven idle processes with 680 MB otherwise
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        },
        start_timeout_s=120,
    )
