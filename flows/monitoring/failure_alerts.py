"""A night that fails tells somebody, once, however many places see it fail."""

from collections.abc import Iterator
from contextlib import contextmanager

from flows.monitoring.notifications import Notification, notify
from flows.workspace.lock import LockHeldError
from flows.workspace.state import newest_round
from tasks.data.paths import Workspace
from tasks.runtime.errors import UserError

_NOTIFIED_ATTRIBUTE = "gleaner_notified"


@contextmanager
def notify_on_failure(workspace: Workspace) -> Iterator[None]:
    """Notify about the error that ends this block, and let it pass.

    No alarm is what a person did (Ctrl-C, SIGTERM and a cancelled run are not errors), and that another night is
    at work already.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, LockHeldError) and not _is_already_notified(error):
            notify(Notification(workspace.root.name, _current_round(workspace), "run_failed", _message(error)))
            setattr(error, _NOTIFIED_ATTRIBUTE, True)
        raise


def _is_already_notified(error: BaseException) -> bool:
    """Whether this error, or the one it comes from, was reported further inside."""
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


def _current_round(workspace: Workspace) -> int | None:
    try:
        return newest_round(workspace)
    except UserError:
        return None
