"""One line for what a service or the machine did to a night; only a bug keeps its traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from prefect.exceptions import PrefectHTTPStatusError

from flows.safety.retries import is_outage
from tasks.errors import UserError
from tasks.shortage import causes, shortage

GOES_ON = "What is done is safe: gleaner night goes on from there"


class ServiceError(UserError):
    """A service that a night needs does not do its part."""

    exit_code = 1


@contextmanager
def named_causes(where: str, kind: type[UserError] = ServiceError) -> Iterator[None]:
    """Turn what goes wrong in the block, but for bugs, into an error that says it in one line.

    Args:
        where: the service at work, as the message calls it.
        kind: class of the error where the service is the cause.

    Raises:
        UserError: see above.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        named = shortage("this machine", error) or _service_error(where, error, kind)
        if named is None:
            raise
        raise named from error


def _service_error(where: str, error: Exception, kind: type[UserError]) -> UserError | None:
    of_service = isinstance(error, (MlflowException, PrefectHTTPStatusError))
    if not of_service and not any(is_outage(cause) for cause in causes(error)):
        return None
    said = (str(error).splitlines() or [""])[0] or type(error).__name__
    return kind(where, f"the answer is an error ({said}), expected none", f"{GOES_ON} when {where} answers.")
