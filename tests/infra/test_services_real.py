"""The two servers the other tests lean on do what they are there for."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import psycopg2
import pytest
from botocore.exceptions import ClientError

from infra.services.object_store import NUM_PORTS, S3Key, s3_client
from infra.services.ports import LOOPBACK
from tests.services import S3Server

pytestmark = [pytest.mark.integration, pytest.mark.services]


def test_the_s3_server_keeps_what_it_is_given(s3_server: S3Server) -> None:
    client, bucket = s3_server.client(), s3_server.new_bucket()
    client.put_object(Bucket=bucket, Key="a/b.bin", Body=b"bytes")
    assert client.get_object(Bucket=bucket, Key="a/b.bin")["Body"].read() == b"bytes"
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["a/b.bin"]


def test_the_s3_server_refuses_a_wrong_secret(s3_server: S3Server) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3_client(s3_server.url, S3Key(s3_server.key.access, "wrong")).list_buckets()


def weed_shell(s3_server: S3Server, command: str, **environment: str) -> str:
    """What SeaweedFS's own shell answers on the inner ports, within ten seconds."""
    port = int(s3_server.url.rsplit(":", 1)[1])
    program = str(Path(sys.executable).with_name("weed"))
    arguments = [f"-master={LOOPBACK}:{port + 2}.{port + 3}", f"-filer={LOOPBACK}:{port + 6}.{port + 7}"]
    try:
        done = subprocess.run(
            [program, "shell", *arguments], input=f"{command}\nexit\n", cwd="/",
            env={"PATH": os.defpath, "HOME": "/nonexistent", **environment},
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:  # it goes on trying
        return "refused"
    return done.stdout


def test_other_users_of_the_machine_get_nothing_from_the_inner_ports(s3_server: S3Server) -> None:
    client, bucket = s3_server.client(), s3_server.new_bucket()
    client.put_object(Bucket=bucket, Key="secret.bin", Body=b"bytes")
    assert "secret.bin" in weed_shell(s3_server, f"fs.ls /buckets/{bucket}", **s3_server.inner_environment)
    assert "secret.bin" not in weed_shell(s3_server, f"fs.ls /buckets/{bucket}")
    port = int(s3_server.url.rsplit(":", 1)[1])
    paths = ("/dir/assign", "/vol/status", f"/col/delete?collection={bucket}", f"/buckets/{bucket}/secret.bin")
    for number in range(1, NUM_PORTS):
        for path in paths:
            with pytest.raises(OSError, match=r"HTTP Error 4|reset|closed|refused|malformed|BadStatusLine|HTTP/0.9"):
                urllib.request.urlopen(f"http://{LOOPBACK}:{port + number}{path}", timeout=5)
    assert client.get_object(Bucket=bucket, Key="secret.bin")["Body"].read() == b"bytes"


def test_the_environment_alone_leads_boto3_to_the_server(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server.set_environment(monkeypatch)
    script = "import boto3; print([b['Name'] for b in boto3.client('s3').list_buckets()['Buckets']])"
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "gleaner" in listed.stdout


def test_a_database_of_ones_own(postgres_url: str) -> None:
    connection = psycopg2.connect(postgres_url)
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'")
        assert cursor.fetchone() == (0,)
    finally:
        connection.close()


def test_postgres_refuses_a_wrong_password(postgres_url: str) -> None:
    wrong = postgres_url.replace("gleaner:", "gleaner:x", 1)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(wrong)
