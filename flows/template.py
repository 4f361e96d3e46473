"""A campaign's own ``dvc.yaml``, made from the repository's, and what git and DVC leave alone."""

from typing import Any

import yaml

from flows.code_digests import is_code, packaged_stages

_DVC_HEADER = """\
# The round: a pure function of the labels and params.yaml. `dvc repro` recomputes what changed.
# code_versions.json holds a digest of the installed source of each stage; `gleaner run` keeps it up to date.
"""
_GITIGNORE = """\
# Written by the round; DVC adds what it keeps itself to .gitignore files further down.
/oracle/
/.gleaner/
/.prefect/
/mlartifacts/
/mlruns/
/mlflow.db*
/deliveries/*/*
!/deliveries/*/delivery.json
!/deliveries/*/manifest.jsonl
.*.tmp
"""
_DVCIGNORE = "__pycache__/\n.gleaner/\n.prefect/\nmlartifacts/\nmlruns/\n.*.tmp\n"


def gitignore_text() -> str:
    """What git never sees."""
    return _GITIGNORE


def dvcignore_text() -> str:
    """What DVC never takes for part of a dependency."""
    return _DVCIGNORE


def workspace_dvc_yaml() -> str:
    """The round's graph: no ``draw``, and a digest in code_versions.json in place of each stage's source files."""
    stages = {name: _replace_code_deps(name, entry) for name, entry in packaged_stages().items() if name != "draw"}
    body = yaml.safe_dump({"stages": stages}, sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True)
    return _DVC_HEADER + body


def _replace_code_deps(stage: str, entry: dict[str, Any]) -> dict[str, Any]:
    kept = {**entry, "deps": [path for path in entry["deps"] if not is_code(path)]}
    kept["params"] = [*entry.get("params", ()), {"code_versions.json": [stage]}]
    return kept
