"""What all checks look at. Read once, and read leniently: a broken file breaks the checks that need it, no others."""

from functools import cached_property
from typing import Any

import yaml

from flows.workspace.state import newest_round
from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX
from tasks.params import Params, load_params
from tasks.runtime.errors import UserError
from tasks.storage import files


class CheckContext:
    """One campaign under examination."""

    def __init__(self, workspace: Workspace) -> None:
        """Nothing is read yet."""
        self.workspace = workspace

    @cached_property
    def params(self) -> Params:
        """The checked parameters.

        Raises:
            UserError: as ``load_params`` says.
        """
        return load_params(self.workspace.params)

    @cached_property
    def raw_params(self) -> dict[str, Any]:
        """params.yaml as it stands, unchecked; empty where it is no YAML."""
        try:
            content = yaml.safe_load(self.workspace.params.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def classes(self) -> list[str] | None:
        """Class names, even where another parameter is broken; None where they are."""
        names = self.raw_params.get("classes")
        usable = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        return list(names) if usable and names is not None else None

    @cached_property
    def index(self) -> list[dict[str, Any]]:
        """Rows of the pool's index, schemas.INDEX.

        Raises:
            UserError: missing or unreadable.
        """
        rows: list[dict[str, Any]] = files.read_table(self.workspace.index, INDEX).to_pylist()
        return rows

    @cached_property
    def round_number(self) -> int | None:
        """Number of the newest label batch; None where the batches are broken."""
        try:
            return newest_round(self.workspace)
        except UserError:
            return None
