"""Define errors that a user can act on."""

from typing import Any


class UserError(Exception):
    """An input of the user is wrong; shown as one message, never as a traceback.

    Message pattern: ``<where>: <what> is <value>, expected <allowed>. <fix>``.
    """

    exit_code = 2
    transient = False
    """Whether the same call may work in a while."""

    def __init__(self, where: object, problem: str, fix: str = "") -> None:
        """Build the message.

        Args:
            where: file, parameter file or command the problem stands in.
            problem: ``<what> is <value>, expected <allowed>``, without the final dot.
            fix: a sentence that says what to do, or the command to run.
        """
        self.where = str(where)
        self.problem = problem
        self.fix = fix
        super().__init__(f"{self.where}: {problem}." + (f" {fix}" if fix else ""))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str], dict[str, Any]]:
        """Support pickling, so that the error can pass between processes."""
        return type(self), (self.where, self.problem, self.fix), self.__dict__


class GuardRailError(UserError):
    """Training diverged (docs/method.md#training)."""

    exit_code = 3


class OutOfMemoryError(UserError):
    """The device or the machine has too little memory for one batch of a stage."""

    exit_code = 4


class DiskFullError(UserError):
    """A file could not be written because the disk is full; no partly written file is left."""

    exit_code = 5


EXIT_INTERRUPTED = 75
"""Exit code of a stage that was asked to leave and has kept its state: running it again goes on from there.
The number is EX_TEMPFAIL of sysexits.h, which asks for just that."""

EXIT_UNREACHABLE = 6
"""Exit code of a stage that a service outside gave no answer: running it again in a while goes on from there."""
