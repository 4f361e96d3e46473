"""Send one notification about a run that fails."""

from collections.abc import Iterator
from contextlib import contextmanager

from flows.monitoring.notifications import Notification, notify
from flows.workspace.lock import LockHeldError
from flows.workspace.state import newest_round_or_none
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

_NOTIFIED_ATTRIBUTE = "gleaner_notified"


@contextmanager
def notify_on_failure(workspace: Workspace) -> Iterator[None]:
    """Send a notification about the exception that ends this block, and let it pass.

    The flow reports its own failures. The command line reports what fails before a flow can begin, such as Prefect's
    server; an exception that the flow has reported is marked, so that it is not reported again.

    Not reported: what a person did (Ctrl-C, SIGTERM and a cancelled run are not errors), and a run that is refused
    because another one holds the lock.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, LockHeldError) and not _is_already_notified(error):
            notify(Notification(workspace.root.name, newest_round_or_none(workspace), "run_failed", _message(error)))
            setattr(error, _NOTIFIED_ATTRIBUTE, True)
        raise


def _is_already_notified(error: BaseException) -> bool:
    """Tell whether this exception, or one that caused it, has been reported."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, _NOTIFIED_ATTRIBUTE, False):
            return True
        cause = cause.__cause__
    return False


def _message(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
