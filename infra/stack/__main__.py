"""``python -m infra.stack up | status | down``; ``make stack`` and its like call this."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from infra.stack import stack
from infra.stack.service import StackError
from infra.stack.settings import SERVICES, Settings, load, load_or_make
from tasks.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_out = Console(soft_wrap=True, highlight=False)
_STYLES = {"running": "green", "stopped": "dim", "ill": "red"}
FolderOption = Annotated[Path, typer.Option("--dir", help="Data, logs and credentials of the stack.")]
HOME = Path(".stack")


@app.command()
def up(
    folder: FolderOption = HOME,
    port: Annotated[
        list[str] | None,
        typer.Option(metavar="SERVICE=PORT", help=f"Another port for {', '.join(SERVICES)}; kept. Repeatable."),
    ] = None,
) -> None:
    """Start PostgreSQL, the S3 server, MLflow and Prefect on loopback; what runs already is left alone."""
    settings = load_or_make(folder, dict(_port(text) for text in port or ()))
    stack.up(settings, _tell)
    _out.print(f"In each shell that works with them: . {escape(str(_near(settings.env_file)))}")


@app.command()
def env(folder: FolderOption = HOME) -> None:
    """Make the credentials, where there are none, and the file to source; for infra/compose.yaml."""
    _out.print(escape(str(_near(load_or_make(folder, {}).env_file))))


@app.command()
def status(folder: FolderOption = HOME) -> None:
    """Ask each service for some real work; exit code 1 if one of them does not do it."""
    states = []
    for condition in stack.status(_existing(folder)):
        _tell(condition)
        states.append(condition.state)
    sys.exit(0 if set(states) == {"running"} else 1)


@app.command()
def down(folder: FolderOption = HOME) -> None:
    """Stop all; their data stay."""
    stack.down(_existing(folder), _tell)


def _existing(folder: Path) -> Settings:
    settings = load(folder)
    if settings is None:
        raise StackError(folder, "no stack was ever started here, expected one", "Run make stack.")
    return settings


def _port(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not number.isdecimal():
        raise StackError("--port", f"the value is {text!r}, expected SERVICE=PORT as in prefect=4300")
    return name, int(number)


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _tell(condition: stack.Condition) -> None:
    style = _STYLES[condition.state]
    words = f"  {escape(condition.words)}" if condition.words else ""
    _out.print(f"{condition.name:<9} [{style}]{condition.state:<8}[/{style}] {condition.url}{words}")


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(escape(str(error)), style="red", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)
