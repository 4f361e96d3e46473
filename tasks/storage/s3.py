"""List, read and write objects in S3 or a compatible store, with errors that a user can act on.

Credentials and endpoint come from the environment, by the names AWS's own tools use (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE``, ``AWS_ENDPOINT_URL_S3``, ``AWS_REGION``); they are written nowhere.
An object is whole or absent: the server shows it when its last byte is there, never before.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

from tasks.runtime.errors import EXIT_UNREACHABLE, UserError

SCHEME = "s3://"
_CHUNK_BYTES = 1 << 20
_CONNECTIONS = 64
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5, 60
_MAX_ATTEMPTS = 4
"""Of botocore, with exponential delay and jitter, for one request."""
_DIGEST_KEY = "sha256"
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NOT_FOUND_CODES = {"404", "NoSuchKey", "NotFound"}
_HINTS = {
    "NoSuchBucket": "Create the bucket, or correct its name.",
    "AccessDenied": "Give the credentials in the environment the right to it.",
    "403": "Give the credentials in the environment the right to it.",
    "InvalidAccessKeyId": "Check AWS_ACCESS_KEY_ID.",
    "SignatureDoesNotMatch": "Check AWS_SECRET_ACCESS_KEY.",
    "ExpiredToken": "Fetch new credentials.",
}


class ObjectStoreError(UserError):
    """The object store refuses a request or its credentials."""


class ObjectStoreUnavailable(ObjectStoreError):
    """The object store gives no answer, or reports a temporary error."""

    exit_code = EXIT_UNREACHABLE
    transient = True


class MissingObjectError(ObjectStoreError):
    """The object does not exist."""


@dataclass(frozen=True, slots=True)
class ObjectMetadata:
    """One object of a listing."""

    uri: str
    size_bytes: int
    etag: str
    """Changes whenever the content does; how it is computed is the server's affair."""
    modified_at: datetime


def is_object_uri(uri: str) -> bool:
    """Return whether ``uri`` names something in an object store."""
    return uri.startswith(SCHEME)


def split_uri(uri: str) -> tuple[str, str]:
    """Split ``s3://bucket/key`` into bucket and key; the key of a bare bucket is empty.

    Raises:
        UserError: no s3 uri, or no name a bucket can have.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not is_object_uri(uri) or not _BUCKET_NAME.fullmatch(bucket):
        raise UserError(uri[:200], f"the bucket is {bucket[:80]!r}, expected s3://bucket/prefix")
    return bucket, key


def list_objects(prefix_uri: str) -> Iterator[ObjectMetadata]:
    """Yield all objects below a prefix, a thousand per request; ``s3://b/a`` is a folder and does not list ``s3://b/ab``.

    Raises:
        ObjectStoreError: away, refused, or no such bucket.
    """
    bucket, key = split_uri(prefix_uri)
    prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
    with _translate_errors(prefix_uri):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # how consoles mark an empty folder
                    uri = f"{SCHEME}{bucket}/{entry['Key']}"
                    yield ObjectMetadata(uri, entry["Size"], entry["ETag"].strip('"'), entry["LastModified"])


def read_object(uri: str) -> bytes:
    """Read one object.

    Raises:
        MissingObjectError: there is none.
        ObjectStoreError: away or refused.
    """
    bucket, key = split_uri(uri)
    with _translate_errors(uri):
        content: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return content


def fetch_object(uri: str, into: IO[bytes]) -> str:
    """Stream one object into an open file.

    Returns:
        SHA-256 of what was written, 64 hex digits.

    Raises:
        MissingObjectError: there is none.
        ObjectStoreError: away, refused, or the connection was cut; ``into`` may then hold a part.
    """
    bucket, key = split_uri(uri)
    digest = hashlib.sha256()
    with _translate_errors(uri):
        body = _client().get_object(Bucket=bucket, Key=key)["Body"]
        with body:
            for chunk in body.iter_chunks(_CHUNK_BYTES):
                into.write(chunk)
                digest.update(chunk)
    return digest.hexdigest()


def write_object(uri: str, content: bytes) -> None:
    """Write one object at once; the server checks its checksum before it is visible.

    Raises:
        ObjectStoreError: away or refused.
    """
    bucket, key = split_uri(uri)
    with _translate_errors(uri):
        metadata = {_DIGEST_KEY: hashlib.sha256(content).hexdigest()}
        _client().put_object(Bucket=bucket, Key=key, Body=content, Metadata=metadata)


def upload_file(path: Path, uri: str, sha256: str) -> None:
    """Upload a file of the given SHA-256, unless the very same bytes are there already.

    Raises:
        ObjectStoreError: away or refused.
    """
    bucket, key = split_uri(uri)
    with _translate_errors(uri):
        try:
            existing = _client().head_object(Bucket=bucket, Key=key)
        except _botocore_exceptions().ClientError as error:
            if _error_code(error) not in _NOT_FOUND_CODES:
                raise
        else:
            if existing["ContentLength"] == path.stat().st_size and existing["Metadata"].get(_DIGEST_KEY) == sha256:
                return
        _client().upload_file(str(path), bucket, key, ExtraArgs={"Metadata": {_DIGEST_KEY: sha256}})


def delete_object(uri: str) -> None:
    """Delete one object, if it exists.

    Raises:
        ObjectStoreError: away or refused.
    """
    bucket, key = split_uri(uri)
    with _translate_errors(uri):
        _client().delete_object(Bucket=bucket, Key=key)


@contextmanager
def _translate_errors(uri: str) -> Iterator[None]:
    """Translate errors of boto3 into our own. Its messages may contain a signed request, so none is passed on."""
    from boto3.exceptions import S3UploadFailedError
    from urllib3.exceptions import HTTPError

    exceptions = _botocore_exceptions()
    try:
        yield
    except exceptions.ClientError as error:
        raise _request_error(uri, error) from None
    except S3UploadFailedError as error:
        cause = error.__context__
        raise (
            _request_error(uri, cause) if isinstance(cause, exceptions.ClientError) else _unavailable(uri, error)
        ) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound):
        problem = "the credentials in the environment are none, or not whole, expected those of the object store"
        raise ObjectStoreError(uri, problem, "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.") from None
    except (exceptions.HTTPClientError, exceptions.BotoCoreError, HTTPError, ConnectionError, TimeoutError) as error:
        raise _unavailable(uri, error) from None


def _request_error(uri: str, error: Any) -> ObjectStoreError:
    code = _error_code(error)
    if code in _NOT_FOUND_CODES:
        return MissingObjectError(uri, "the object is missing, expected it there")
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    transient = status >= 500 or status == 429 or code in {"SlowDown", "RequestTimeout"}
    error_class = ObjectStoreUnavailable if transient else ObjectStoreError
    fix = _HINTS.get(code, "Try again in a while." if transient else "")
    return error_class(uri, f"the object store's answer is {code}, expected success", fix)


def _unavailable(uri: str, error: BaseException) -> ObjectStoreError:
    problem = f"the object store is out of reach ({type(error).__name__}), expected an answer"
    fix = "Check the network and AWS_ENDPOINT_URL_S3, or try again in a while."
    return ObjectStoreUnavailable(uri, problem, fix)


def _error_code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _botocore_exceptions() -> Any:
    from botocore import exceptions  # a quarter of a second, paid by those who have objects

    return exceptions


def _client() -> Any:
    """Return one client per process, since a fork must not share connections, and per set of credentials."""
    return _new_client(os.getpid(), tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@cache
def _new_client(_pid: int, environment: tuple[tuple[str, str], ...]) -> Any:
    import boto3
    from botocore.config import Config

    for name in ("botocore", "boto3", "s3transfer"):  # where they found the credentials is no news to an operator
        logging.getLogger(name).setLevel(logging.WARNING)
    custom_endpoint = {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} & dict(environment).keys()
    session = boto3.session.Session()
    return session.client(
        "s3",
        region_name=os.environ.get("AWS_REGION") or session.region_name or "us-east-1",
        config=Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": _MAX_ATTEMPTS},
            max_pool_connections=_CONNECTIONS,
            s3={"addressing_style": "path" if custom_endpoint else "auto"},
        ),
    )
