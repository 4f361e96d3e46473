"""Run a stage of the round from a workspace's root: ``python -m tasks train``.

The same as ``python -m tasks.train``, but the garbage collector is off during the imports: a second less for each stage
that needs torch.
"""

import sys

from tasks.data.paths import STAGES
from tasks.runtime.errors import UserError
from tasks.runtime.imports import import_without_gc


def main(arguments: list[str]) -> None:
    """Import the stage's module and run it.

    Raises:
        UserError: not exactly one argument, or no stage's name.
    """
    if len(arguments) != 1 or arguments[0] not in STAGES:
        given = " ".join(arguments) or "missing"
        raise UserError("python -m tasks", f"the stage is {given}, expected one of {', '.join(STAGES)}")
    import_without_gc(f"tasks.{arguments[0]}").main()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:  # of the arguments: stage_main reports those of the stage itself
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
