"""Starts Label Studio on this machine's loopback, unattended, and stays until it is told to stop.

Reads  the images below --files, which the server hands to annotators' browsers
Writes --data: database, uploads, server.log and account.env (the first user's password and token; mode 0600)

Run it from the root of the repository: ``python -m infra.label_studio.run --data DIR --files DIR``. It installs Label
Studio first where that has not been done.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from infra.label_studio.admin_user import CREDENTIALS_FILE, load_or_create_admin
from infra.label_studio.install import InstallError, install
from infra.label_studio.service import label_studio
from infra.services import processes
from infra.services.ports import is_port_taken
from infra.services.service import LocalServiceError
from tasks.runtime.errors import UserError

DEFAULT_PORT = 9580
"""Outside of 8000 to 8999, where Prefect puts its temporary servers."""


def run(
    data: Annotated[Path, typer.Option(help="Folder of its database; made where it is missing.")],
    files: Annotated[
        Path, typer.Option(help="Folder that the campaigns lie in; made where it is missing.", file_okay=False)
    ],
    port: Annotated[int, typer.Option(help="On 127.0.0.1.")] = DEFAULT_PORT,
) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    data, files, log = data.absolute(), files.resolve(), data.absolute() / "server.log"
    if is_port_taken(port):  # Label Studio would take the next free one without a word
        raise LocalServiceError(
            "label-studio", f"port {port} is taken, expected it free", "Choose another with --port."
        )
    program = install()
    files.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o700)  # its database holds everybody's tokens
    admin = load_or_create_admin(data, os.environ)
    service = label_studio(program, data, files, port, admin)
    print("Label Studio: starting; the very first time takes a minute or two", flush=True)
    process, pid_file = processes.start(service, log, die_with_parent=True), data / "process.json"
    processes.write_pid_file(pid_file, process.pid)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        processes.wait_until_ready(service, process, log)
        print(f"Label Studio: {service.url}, user {admin.email}, images below {files}", flush=True)
        print(f"Its password and token: {data / CREDENTIALS_FILE}", flush=True)
        raise LocalServiceError(
            service.name, f"the server ended with code {process.wait()}, expected it to stay", f"Log: {log}."
        )
    finally:
        processes.stop(pid_file, service.stop_signal, service.stop_timeout_s)


if __name__ == "__main__":
    try:
        typer.run(run)
    except (InstallError, UserError) as error:
        sys.exit(f"infra/label_studio: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"infra/label_studio: pip ended with {error.returncode}; its own words are above.")
