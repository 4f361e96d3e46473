"""``python -m infra.services up | status | down``; ``make services-up`` and its like call this."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from infra.services import stack
from infra.services.service import LocalServiceError
from infra.services.settings import SERVICES, Settings, load, load_or_create
from tasks.runtime.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_console = Console(soft_wrap=True, highlight=False)
_STYLES = {"running": "green", "stopped": "dim", "unhealthy": "red"}
FolderOption = Annotated[Path, typer.Option("--dir", help="Data, logs and credentials of the stack.")]
DEFAULT_FOLDER = Path(".stack")


@app.command()
def up(
    folder: FolderOption = DEFAULT_FOLDER,
    port: Annotated[
        list[str] | None,
        typer.Option(metavar="SERVICE=PORT", help=f"Another port for {', '.join(SERVICES)}; kept. Repeatable."),
    ] = None,
) -> None:
    """Start PostgreSQL, the S3 server, MLflow and Prefect on loopback; what runs already is left alone."""
    settings = load_or_create(folder, dict(_parse_port(text) for text in port or ()))
    stack.up(settings, _print_status)
    _console.print(f"In each shell that works with them: . {escape(str(_relative(settings.env_file)))}")


@app.command()
def env(folder: FolderOption = DEFAULT_FOLDER) -> None:
    """Make the credentials, where there are none, and the file to source; for infra/compose.yaml."""
    _console.print(escape(str(_relative(load_or_create(folder, {}).env_file))))


@app.command()
def status(folder: FolderOption = DEFAULT_FOLDER) -> None:
    """Ask each service for some real work; exit code 1 if one of them does not do it."""
    service_states = []
    for service_status in stack.status(_load_existing(folder)):
        _print_status(service_status)
        service_states.append(service_status.state)
    sys.exit(0 if set(service_states) == {"running"} else 1)


@app.command()
def down(folder: FolderOption = DEFAULT_FOLDER) -> None:
    """Stop all; their data stay."""
    stack.down(_load_existing(folder), _print_status)


def _load_existing(folder: Path) -> Settings:
    settings = load(folder)
    if settings is None:
        raise LocalServiceError(folder, "no stack was ever started here, expected one", "Run make services-up.")
    return settings


def _parse_port(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not number.isdecimal():
        raise LocalServiceError("--port", f"the value is {text!r}, expected SERVICE=PORT as in prefect=4300")
    return name, int(number)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _print_status(service_status: stack.ServiceStatus) -> None:
    style = _STYLES[service_status.state]
    detail = f"  {escape(service_status.detail)}" if service_status.detail else ""
    _console.print(
        f"{service_status.name:<9} [{style}]{service_status.state:<9}[/{style}] {service_status.url}{detail}"
    )


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(escape(str(error)), style="red", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)
