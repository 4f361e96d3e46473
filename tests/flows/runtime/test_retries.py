"""Which failures are tried again; a table of causes, and the policy at work."""

import errno
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import requests
from botocore.exceptions import ClientError, EndpointConnectionError
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from flows.annotation.providers.base import ProviderError
from flows.runtime.retries import (
    RETRY_DELAYS_S,
    ServiceError,
    is_transient,
    retry_with_half_batch,
    retrying_task,
    translate_service_errors,
)
from flows.workspace.dvc import DvcError
from tasks.runtime.errors import DiskFullError, OutOfMemoryError, UserError
from tasks.runtime.resource_errors import as_resource_error


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


def s3_error(status: int) -> ClientError:
    return ClientError({"ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


def caused_by(cause: Exception) -> Exception:
    error = RuntimeError("a library's own words")
    error.__cause__ = cause
    return error


CAUSES: list[tuple[Exception, bool]] = [
    (ConnectionRefusedError(), True),
    (ConnectionResetError(), True),
    (TimeoutError(), True),
    (socket.gaierror(-2, "Name or service not known"), True),
    (requests.ConnectionError(), True),
    (requests.ReadTimeout(), True),
    (httpx.ConnectError("x"), True),
    (httpx.ReadTimeout("x"), True),
    (EndpointConnectionError(endpoint_url="http://x"), True),
    *((http_error(status), True) for status in (429, 500, 502, 503, 504)),
    *((http_error(status), False) for status in (400, 401, 403, 404)),
    (s3_error(503), True),
    (s3_error(403), False),
    (MlflowException("API request failed"), True),
    (MlflowException("away", error_code=TEMPORARILY_UNAVAILABLE), True),
    (MlflowException("no such thing", error_code=INVALID_PARAMETER_VALUE), False),
    (caused_by(ConnectionResetError()), True),
    (ProviderError("Label Studio", "is away", transient=True), True),
    (ProviderError("Label Studio", "refuses the token"), False),
    (DvcError(Path("x"), "push", 255, "ERROR: Could not connect to the endpoint URL"), True),
    (DvcError(Path("x"), "push", 255, "ERROR: failed to connect to s3 (b/files/md5) - Forbidden"), False),
    (UserError("params.yaml", "x is y"), False),
    (OSError(errno.ENOSPC, "No space left on device"), False),
    (caused_by(OSError(errno.ENOSPC, "No space left on device")), False),
    (MlflowException("(sqlite3.OperationalError) database or disk is full"), False),
    (PermissionError(), False),
    (KeyError("a bug"), False),
    (AssertionError(), False),
]


@pytest.mark.parametrize(("error", "again"), CAUSES, ids=lambda value: repr(value)[:60])
def test_what_passes_by_itself_is_tried_again_and_nothing_else(error: Exception, again: bool) -> None:
    assert is_transient(error) == again


def failing_task(failures: list[Exception]) -> Callable[[], str]:
    @retrying_task("failing")
    def failing() -> str:
        if failures:
            raise failures.pop(0)
        return "done"

    return failing.with_options(retry_delay_seconds=[0.0] * len(RETRY_DELAYS_S))


@pytest.mark.integration
@pytest.mark.usefixtures("prefect_test_server")
def test_an_outage_shorter_than_the_delays_is_not_noticed() -> None:
    failures = [ProviderError("x", "is away", transient=True), ConnectionResetError(), http_error(503)]
    assert failing_task([*failures])() == "done"


@pytest.mark.integration
@pytest.mark.usefixtures("prefect_test_server")
def test_a_longer_one_is_told() -> None:
    failures: list[Exception] = [ConnectionResetError() for _ in range(len(RETRY_DELAYS_S) + 1)]
    with pytest.raises(ConnectionResetError):
        failing_task(failures)()
    assert failures == []


@pytest.mark.integration
@pytest.mark.usefixtures("prefect_test_server")
@pytest.mark.parametrize("error", [UserError("x", "is y"), KeyError("a bug"), OSError(errno.ENOSPC, "full")])
def test_what_does_not_mend_itself_is_tried_once(error: Exception) -> None:
    failures = [error, error]
    with pytest.raises(type(error)):
        failing_task(failures)()
    assert len(failures) == 1


def test_memory_gets_one_more_chance_with_half_the_batch() -> None:
    divisors: list[int] = []
    warnings: list[str] = []

    def run(divisor: int) -> str:
        divisors.append(divisor)
        if divisor == 1:
            raise OutOfMemoryError("train", "memory is used up", "Lower x.")
        return "done"

    assert retry_with_half_batch(run, warnings.append) == "done"
    assert divisors == [1, 2]
    assert "Retrying with half the batch. Lower x." in warnings[0]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), OutOfMemoryError),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), OutOfMemoryError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), OutOfMemoryError),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFullError),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFullError),
        (sqlite3.OperationalError("database or disk is full"), DiskFullError),
        (RuntimeError("shapes do not match"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_a_shortage_is_told_from_a_bug(error: Exception, kind: type[UserError] | None) -> None:
    named = as_resource_error("train", error)
    assert type(named) is (kind or type(None))
    if named is not None:
        assert str(named).startswith("train: ")
        assert "expected" in str(named)


def test_a_service_that_fails_is_named_and_a_bug_keeps_its_traceback() -> None:
    words = r"^Prefect: the answer is an error \(All connection attempts failed\)"
    with pytest.raises(ServiceError, match=words), translate_service_errors("Prefect"):
        raise httpx.ConnectError("All connection attempts failed")
    with pytest.raises(DiskFullError), translate_service_errors("Prefect"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(KeyError), translate_service_errors("Prefect"):
        raise KeyError("a bug")
