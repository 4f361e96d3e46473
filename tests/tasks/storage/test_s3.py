"""The object store's errors and listings, against a real S3 server."""

import hashlib
import time
from pathlib import Path

import pytest

from tasks.runtime.errors import UserError
from tasks.storage.s3 import ObjectStoreError, list_objects, read_object, split_uri, upload_file
from tests.services import S3Server

pytestmark = pytest.mark.integration


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    s3_server.set_environment(monkeypatch)
    return f"s3://{s3_server.new_bucket()}"


def test_refusals_name_what_to_mend_and_no_secret(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody-we-know")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    with pytest.raises(ObjectStoreError, match="Check AWS_ACCESS_KEY_ID") as caught:
        read_object(f"{bucket}/a")
    assert not caught.value.transient
    assert "secret" not in str(caught.value)
    assert "nobody-we-know" not in str(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ObjectStoreError, match="credentials in the environment are none"):
        read_object(f"{bucket}/a")


def test_a_listing_has_pages_and_knows_folders_from_prefixes(bucket: str, s3_server: S3Server) -> None:
    for key in ("pool/1.png", "pool/sub/2.png", "pool2/3.png", "pool/"):
        s3_server.client().put_object(Bucket=split_uri(bucket)[0], Key=key, Body=b"" if key == "pool/" else b"x")
    for prefix in (f"{bucket}/pool", f"{bucket}/pool/"):
        assert [facts.uri for facts in list_objects(prefix)] == [f"{bucket}/pool/1.png", f"{bucket}/pool/sub/2.png"]
    assert len(list(list_objects(bucket))) == 3


@pytest.mark.parametrize("uri", ["s3://", "s3:///a", "s3://UPPER/a", "/etc/passwd", "s3://a_b/c", "http://bucket/a"])
def test_what_names_no_bucket_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="expected s3://bucket/prefix"):
        split_uri(uri)


def test_an_upload_of_the_same_bytes_is_skipped(bucket: str, tmp_path: Path, s3_server: S3Server) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    upload_file(path, f"{bucket}/a", digest)
    (first,) = list_objects(bucket)
    time.sleep(1.1)
    upload_file(path, f"{bucket}/a", digest)
    assert list(list_objects(bucket)) == [first]
    path.write_bytes(b"changed")
    upload_file(path, f"{bucket}/a", hashlib.sha256(b"changed").hexdigest())
    assert read_object(f"{bucket}/a") == b"changed"
