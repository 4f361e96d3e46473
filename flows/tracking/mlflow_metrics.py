"""The numbers of one round under the names they have in MLflow."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flows.workspace.stage_log import stage_seconds
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.storage import files

_FORBIDDEN_CHARACTERS = re.compile(r"[^\w\-. :/]")
_QUANTILES = ("q10", "q50", "q90")
_MAX_PARAM_LENGTH = 6000
_MAX_PART_LENGTH = 80  # a name of three of them stays below MLflow's 250


def round_metrics(workspace: Workspace, round_number: int, history_entry: dict[str, Any]) -> dict[str, float]:
    """Every number of the round: its figures, AP of each class for teacher and student, seconds a stage.

    Args:
        workspace: a derived round.
        round_number: of the round.
        figures: its entry in the campaign's history.
    """
    evaluation_metrics = files.read_json(workspace.derived("evaluate") / "metrics.json")
    return flatten_metrics(history_entry, evaluation_metrics, stage_seconds(workspace, round_number))


def flatten_metrics(
    history_entry: Mapping[str, Any], evaluation_metrics: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, float]:
    """The same from its three documents: figures, metrics.json of evaluate, seconds by stage."""
    documents = {
        "": {key: _drop_per_class(value) for key, value in history_entry.items() if key != "round"},
        **{f"{model}/AP": evaluation_metrics[model]["per_class"] for model in ("teacher", "student")},
        "seconds": dict(seconds),
    }
    metrics: dict[str, float] = {}
    for prefix, document in documents.items():
        for name, value in _iter_numbers(document, prefix):
            metrics[_unique_name(name, metrics)] = value
    return metrics


def round_params(params: Params) -> dict[str, str]:
    """params.yaml as ``section.key``, lists written out."""
    return flatten_params(params.model_dump(mode="json", exclude_none=True))


def flatten_params(content: Mapping[str, Any]) -> dict[str, str]:
    """The same from the content of a params.yaml."""
    return {name: text[:_MAX_PARAM_LENGTH] for name, text in _iter_leaves(dict(content))}


def _drop_per_class(value: Any) -> Any:
    return {key: item for key, item in value.items() if key != "per_class"} if isinstance(value, dict) else value


def _iter_numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Finite numbers at any depth; what is unknown (null) is not a number."""
    if isinstance(value, dict):
        for key, item in value.items():
            part = _path_part(str(key))
            yield from _iter_numbers(item, f"{name}/{part}" if name else part)
    elif isinstance(value, list):
        keys = _QUANTILES if len(value) == len(_QUANTILES) else [str(position) for position in range(len(value))]
        yield from _iter_numbers(dict(zip(keys, value, strict=True)), name)
    elif isinstance(value, int | float) and math.isfinite(value):
        yield name, float(value)


def _path_part(key: str) -> str:
    """A key as one part of a path, whatever a class or an annotator is called: MLflow refuses ``a//b`` and ``../b``."""
    part = key.replace("/", "_")[:_MAX_PART_LENGTH]
    return part if part.strip(".") else f"_{part}"


def _unique_name(name: str, taken: dict[str, float]) -> str:
    """MLflow allows few characters; class names that become the same are numbered."""
    base = candidate = _FORBIDDEN_CHARACTERS.sub("_", name)
    number = 2
    while candidate in taken:
        candidate, number = f"{base} {number}", number + 1
    return candidate


def _iter_leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _iter_leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)
