"""The S3 server: SeaweedFS, which comes inside a Python wheel.

Its parts also listen on seven inner ports, which follow the S3 port. All are on loopback, which every user of the
machine can reach: the inner ports ask for a client certificate (gRPC) or for a signed token (volumes), and the web
pages of master and filer are off.
"""

import os
import secrets
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.services.object_store_tls import create_certificates, tls_environment
from infra.services.ports import LOOPBACK
from infra.services.service import NotReady, Service

NUM_PORTS = 8
"""The S3 port and the seven after it."""
REGION = "us-east-1"
DATA_BUCKET, MLFLOW_BUCKET = "gleaner", "mlflow"
BUCKETS = (DATA_BUCKET, MLFLOW_BUCKET)
"""One for pools and DVC remotes of campaigns, one for MLflow's artifacts."""
_INTERNAL_PORT_FLAGS = (
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
)
_TOKEN_KEYS = (
    "WEED_JWT_SIGNING_KEY",
    "WEED_JWT_SIGNING_READ_KEY",
    "WEED_JWT_FILER_SIGNING_KEY",
    "WEED_JWT_FILER_SIGNING_READ_KEY",
)
_VOLUME_MB = 256  # the default, 30 GB, is refused as "no writable volumes" on a small disk
_MAX_VOLUMES = 4096  # 1 TiB; 0, "what the disk has room for", counts 256 MB for every bucket that holds one small file
_MIN_FREE_GIB = 1


@dataclass(frozen=True)
class S3Key:
    """Credentials of the one user."""

    access: str
    secret: str = field(repr=False)


def object_store(folder: Path, port: int, key: S3Key) -> Service:
    """An S3 server with its data in ``folder`` that holds ``BUCKETS`` as soon as it is ready."""
    url, tls_folder = f"http://{LOOPBACK}:{port}", folder.with_name(f"{folder.name}-tls")
    internal_ports = [f"-{flag}={port + offset}" for offset, flag in enumerate(_INTERNAL_PORT_FLAGS, start=1)]
    return Service(
        name="s3",
        folder=folder,
        ports=tuple(range(port, port + NUM_PORTS)),
        url=url,
        command=(
            str(Path(sys.executable).with_name("weed")),
            *("server", f"-dir={folder}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"),
            *("-disableHttp", "-filer", "-filer.disableHttp", "-s3", f"-s3.port={port}", *internal_ports),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-master.volumeSizeLimitMB={_VOLUME_MB}"),
            *(f"-volume.max={_MAX_VOLUMES}", f"-volume.minFreeSpace={_MIN_FREE_GIB}GiB"),
            "-master.telemetry=false",
        ),
        check_ready=partial(create_buckets, url, key, BUCKETS),
        env={
            "AWS_ACCESS_KEY_ID": key.access,  # makes this its only user
            "AWS_SECRET_ACCESS_KEY": key.secret,
            **tls_environment(tls_folder),
            **{name: secrets.token_urlsafe(32) for name in _TOKEN_KEYS},  # one process: nobody else needs to know them
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",  # by default every new bucket begins with seven volumes
        },
        prepare=partial(create_certificates, tls_folder),
        start_timeout_s=120,  # on the data of an earlier run it looks for its volumes for 20 s
        stop_timeout_s=60,  # SeaweedFS takes half a minute to say goodbye
    )


def s3_client(url: str, key: S3Key) -> Any:
    """A client that fails soon."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=key.access,
        aws_secret_access_key=key.secret,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, connect_timeout=2, read_timeout=30),
    )


def create_buckets(url: str, key: S3Key, buckets: Collection[str]) -> None:
    """Create what is missing, and write into each: for some seconds after the port opens, every write fails.

    Raises:
        NotReady: the server does not answer, or refuses.
    """
    try:
        client = s3_client(url, key)
        existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for bucket in buckets:
            if bucket not in existing:
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key=".ready", Body=b"ready")
    except (BotoCoreError, ClientError) as error:
        raise NotReady(str(error)) from None


if __name__ == "__main__":  # the health check of compose.yaml
    env_key = S3Key(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    try:
        create_buckets(sys.argv[1], env_key, BUCKETS)
    except NotReady as not_ready:
        sys.exit(str(not_ready))
