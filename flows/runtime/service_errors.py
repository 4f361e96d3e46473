"""One line for what a service or the machine did to a night; only a bug keeps its traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from prefect.exceptions import PrefectHTTPStatusError

from flows.runtime.retries import is_outage
from tasks.runtime.errors import UserError
from tasks.runtime.resource_errors import as_resource_error, exception_chain

RESUME_HINT = "What is done is safe: gleaner run goes on from there"


class ServiceError(UserError):
    """A service that a night needs does not do its part."""

    exit_code = 1


@contextmanager
def translate_service_errors(service: str, error_class: type[UserError] = ServiceError) -> Iterator[None]:
    """Turn what goes wrong in the block, but for bugs, into an error that says it in one line.

    Args:
        service: the service at work, as the message calls it.
        error_class: class of the error where the service is the cause.

    Raises:
        UserError: see above.
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
