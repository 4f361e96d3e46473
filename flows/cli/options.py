"""Options that several commands share, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder of the campaign.", show_default="the current folder")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
