"""Read what several checks need, once. A broken file fails the checks that need it, and no others."""

from functools import cached_property
from typing import Any

import yaml

from flows.workspace.rounds import newest_round
from tasks.data.paths import Workspace
from tasks.data.schemas import INDEX
from tasks.params import Params, load_params
from tasks.runtime.errors import UserError
from tasks.storage import files


class CheckContext:
    """The campaign that is checked."""

    def __init__(self, workspace: Workspace) -> None:
        """Take the workspace; files are read when a check needs them."""
        self.workspace = workspace

    @cached_property
    def params(self) -> Params:
        """Return the validated parameters.

        Raises:
            UserError: as ``load_params`` says.
        """
        return load_params(self.workspace.params)

    @cached_property
    def raw_params(self) -> dict[str, Any]:
        """Return params.yaml without validation; empty if it is not YAML."""
        try:
            content = yaml.safe_load(self.workspace.params.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def classes(self) -> list[str] | None:
        """Return the class names, even if another parameter is invalid; None if they are."""
        names = self.raw_params.get("classes")
        usable = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        return list(names) if usable and names is not None else None

    @cached_property
    def index(self) -> list[dict[str, Any]]:
        """Return the rows of the pool's index, ``schemas.INDEX``.

        Raises:
            UserError: missing or unreadable.
        """
        rows: list[dict[str, Any]] = files.read_table(self.workspace.index, INDEX).to_pylist()
        return rows

    @cached_property
    def round_number(self) -> int | None:
        """Return the number of the newest label batch; None if the batches cannot be read."""
        try:
            return newest_round(self.workspace)
        except UserError:
            return None
