"""Errors a user can act on."""


class UserError(Exception):
    """Something the user gave us is wrong; shown as one message, never as a traceback.

    Message pattern: ``<where>: <what> is <value>, expected <allowed>. <fix>``.
    """

    exit_code = 2

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


class GuardRailError(UserError):
    """Training left the bounds in which its result may be trusted (METHOD section 6)."""

    exit_code = 3
