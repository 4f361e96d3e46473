"""Errors a user can act on."""

from typing import Any


class UserError(Exception):
    """Something the user gave us is wrong; shown as one message, never as a traceback.

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
        """So that it survives the way from one process to another."""
        return type(self), (self.where, self.problem, self.fix), self.__dict__


class GuardRailError(UserError):
    """Training left the bounds in which its result may be trusted (docs/method.md#training)."""

    exit_code = 3


class OutOfMemoryError(UserError):
    """A device or the machine has no memory left for what a stage works on at once."""

    exit_code = 4


class DiskFullError(UserError):
    """Something could not be written for want of space; nothing half-written is left in a file's place."""

    exit_code = 5


EXIT_INTERRUPTED = 75
"""Exit code of a stage that was asked to leave and has kept its state: running it again goes on from there.
The number is EX_TEMPFAIL of sysexits.h, which asks for just that."""

EXIT_UNREACHABLE = 6
"""Exit code of a stage that a service outside gave no answer: running it again in a while goes on from there."""
