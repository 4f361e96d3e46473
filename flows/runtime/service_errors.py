"""Translate failures of services and of the machine into one-line errors; only bugs keep their traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from prefect.exceptions import PrefectHTTPStatusError

from flows.runtime.retries import is_outage
from tasks.runtime.errors import UserError
from tasks.runtime.resource_errors import as_resource_error, exception_chain

RESUME_HINT = "Finished work is kept: gleaner run resumes from there"


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
    message = (str(error).splitlines() or [""])[0] or type(error).__name__
    return error_class(
        service, f"the answer is an error ({message}), expected none", f"{RESUME_HINT} when {service} answers."
    )
