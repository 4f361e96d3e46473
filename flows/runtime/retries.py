"""Decide which failures are transient, how a task is retried, and how the failure of a service is reported.

One policy for all tasks, by cause and not by task:

- network and server errors, a lock held by another process, a stage that was killed: retried with growing delays;
- out of memory: retried once with half the batch;
- a user's mistake, a full disk, a bug: never retried, because the next attempt would fail as well.

What remains after the retries becomes an error of one line; only bugs keep their traceback.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import httpx
import requests
import urllib3
from botocore.exceptions import ConnectionError as S3ConnectionError
from botocore.exceptions import HTTPClientError
from mlflow.exceptions import MlflowException
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import PrefectHTTPStatusError

from flows.runtime.masking import masked_errors
from flows.runtime.process_env import redact
from tasks.runtime.errors import OutOfMemoryError, UserError
from tasks.runtime.resource_errors import as_resource_error, exception_chain, is_disk_full

RETRY_DELAYS_S: list[float] = [5, 20, 80]
"""Delays before the second, third and fourth attempt; after that the task has failed."""
RETRY_JITTER_FRAC = 0.3
"""Random share added to a delay, so that campaigns hit by the same outage do not all retry in the same second."""
_MICRO_BATCHES_ON_RETRY = 2
_RETRYABLE_STATUS_CODES = (408, 425, 429, 500, 502, 503, 504)
_NETWORK_ERRORS = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
    httpx.TransportError,
    HTTPClientError,
    S3ConnectionError,
)
_P = ParamSpec("_P")
_R = TypeVar("_R")
RESUME_HINT = "Finished work is kept: gleaner run resumes from there"


def retrying_task(name: str) -> Callable[[Callable[_P, _R]], Task[_P, _R]]:
    """Make a function a Prefect task with this module's retry policy.

    Args:
        name: name of the task and of its runs; ``{argument}`` is replaced by an argument's value.
    """
    make_task = task(
        name=name,
        task_run_name=name,
        retries=len(RETRY_DELAYS_S),
        retry_delay_seconds=RETRY_DELAYS_S,
        retry_jitter_factor=RETRY_JITTER_FRAC,
        retry_condition_fn=_retry_condition,
        cache_policy=NO_CACHE,
    )

    def decorate(function: Callable[_P, _R]) -> Task[_P, _R]:
        return make_task(masked_errors()(function))

    return decorate


def is_transient(error: BaseException) -> bool:
    """Tell whether the same call may succeed later without anyone's intervention."""
    if isinstance(error, UserError):
        return error.transient
    return not is_disk_full(error) and any(is_outage(cause) for cause in exception_chain(error))


def is_outage(error: BaseException) -> bool:
    """Tell whether a service could not be reached, or failed in a way it recovers from."""
    if isinstance(error, MlflowException):  # it carries an HTTP status even where no server is involved
        return error.get_http_status_code() in _RETRYABLE_STATUS_CODES  # type: ignore[no-untyped-call]
    return isinstance(error, _NETWORK_ERRORS) or _http_status(error) in _RETRYABLE_STATUS_CODES


def retry_with_half_batch(run: Callable[[int], _R], warn: Callable[[str], None]) -> _R:
    """Call ``run`` with 1 micro-batch and, if that runs out of memory, once with 2.

    Args:
        run: the work; takes the number of micro-batches a batch is divided into.
        warn: called with a message before the second attempt.

    Raises:
        OutOfMemoryError: half the batch did not fit either.
    """
    try:
        return run(1)
    except OutOfMemoryError as error:
        warn(f"{error.where}: {error.problem}. Retrying with half the batch. {error.fix}")
    return run(_MICRO_BATCHES_ON_RETRY)


def _retry_condition(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    outcome = state.result(raise_on_failure=False)
    return isinstance(outcome, BaseException) and is_transient(outcome)


def _http_status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of requests, httpx or botocore carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


class ServiceError(UserError):
    """A service that a run needs has failed."""

    exit_code = 1


@contextmanager
def translate_service_errors(service: str, error_class: type[UserError] = ServiceError) -> Iterator[None]:
    """Translate every exception of the block but bugs into an error with a one-line message.

    Args:
        service: name of the service in use, for the message.
        error_class: class of the error where the service is the cause.

    Raises:
        UserError: the service or the machine (memory, disk) has failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        translated = as_resource_error("this machine", error) or _service_error(service, error, error_class)
        if translated is None:
            raise
        raise translated from error


def _service_error(service: str, error: Exception, error_class: type[UserError]) -> UserError | None:
    is_service_exception = isinstance(error, (MlflowException, PrefectHTTPStatusError))
    if not is_service_exception and not any(is_outage(cause) for cause in exception_chain(error)):
        return None
    message = redact((str(error).splitlines() or [""])[0]) or type(error).__name__
    return error_class(
        service, f"the answer is an error ({message}), expected none", f"{RESUME_HINT} when {service} answers."
    )
