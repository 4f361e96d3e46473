"""MLflow as far as ownership and champions go: a file that outlives crashed runs, with the rules that must hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.tracking.mlflow_owner import ADOPT_HINT
from flows.workspace.owner import Owner, OwnerError
from flows.workspace.promotion_log import current_champion
from tasks.data.paths import Workspace


class FakeRegistry:
    """One experiment with one run for each round, one model version for each run, and the alias of the champion."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_call: Callable[[str], None] = lambda _: None
        """Called before and after each change with its name; it may raise."""
        if not path.is_file():
            self._write({"owner": None, "runs": {}, "champion": None})

    @property
    def state(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.path.read_text())
        return content

    def require_owner(self, owner: Owner) -> None:
        """The rule of ``flows.tracking.mlflow_owner.require_tracked_owner``, which is tested with real databases."""
        if self.state["owner"] not in (None, owner.owner_id):
            raise OwnerError("registry", "it belongs to another folder", ADOPT_HINT)

    def claim(self, owner: Owner) -> None:
        self._change("claim", lambda content: content.update(owner=owner.owner_id))

    def log_run(self, number: int, key: str, owner: Owner) -> int:
        """Create or complete the run of a round and return its model version; the round's other runs are superseded."""

        def change(content: dict[str, Any]) -> None:
            runs = content["runs"]
            version = runs.get(key, {}).get("version", len(runs) + 1)
            for other in runs.values():
                other["superseded"] |= other["round"] == number
            runs[key] = {"round": number, "version": version, "owner": owner.owner_id, "superseded": False}

        self._change("log_run", change)
        return int(self.state["runs"][key]["version"])

    def set_champion(self, workspace: Workspace, version: int) -> None:
        """Set the alias; only what the promotion log says may become champion."""
        champion = current_champion(workspace)
        assert champion is not None
        assert champion.version == version, "the alias leaves the promotion log"
        self._change("set_champion", lambda content: content.update(champion=version))

    def _change(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        self.on_call(f"before {name}")
        content = self.state
        change(content)
        self._write(content)
        self.on_call(f"after {name}")

    def _write(self, content: dict[str, Any]) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(self.path)
