"""Metrics and parameters of a round under their names in MLflow."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flows.workspace.rounds import stage_seconds
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.storage import files

_FORBIDDEN_CHARACTERS = re.compile(r"[^\w\-. :/]")
_QUANTILES = ("q10", "q50", "q90")
_MAX_PARAM_LENGTH = 6000
_MAX_PART_LENGTH = 80  # a name of three parts stays below MLflow's limit of 250


def round_metrics(workspace: Workspace, round_number: int, history_entry: dict[str, Any]) -> dict[str, float]:
    """Collect the metrics of a round: its history entry, AP by class of teacher and student, seconds by stage.

    Args:
        workspace: a derived round.
        round_number: number of the round.
        history_entry: the round's entry in the campaign's history.
    """
    evaluation_metrics = files.read_json(workspace.derived("evaluate") / "metrics.json")
    return flatten_metrics(history_entry, evaluation_metrics, stage_seconds(workspace, round_number))


def flatten_metrics(
    history_entry: Mapping[str, Any], evaluation_metrics: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Flatten the three documents of ``round_metrics`` into ``name/part: value``.

    Args:
        history_entry: the round's entry in the campaign's history.
        evaluation_metrics: metrics.json of the evaluate stage.
        seconds: duration by stage, in seconds.
    """
    documents = {
        "": {key: _drop_per_class(value) for key, value in history_entry.items() if key != "round"},
        **{f"{model}/AP": evaluation_metrics[model]["per_class"] for model in ("teacher", "student")},
        **{f"{model}/{name}": found for model, name, found in _iter_protocols(evaluation_metrics["protocols"])},
        "seconds": dict(seconds),
    }
    metrics: dict[str, float] = {}
    for prefix, document in documents.items():
        for name, value in _iter_numbers(document, prefix):
            metrics[_unique_name(name, metrics)] = value
    return metrics


def round_params(params: Params) -> dict[str, str]:
    """Flatten the parameters to ``section.key: text``."""
    return flatten_params(params.model_dump(mode="json", exclude_none=True))


def flatten_params(content: Mapping[str, Any]) -> dict[str, str]:
    """Flatten the content of a params.yaml to ``section.key: text``, each text at most 6,000 characters long."""
    return {name: text[:_MAX_PARAM_LENGTH] for name, text in _iter_leaves(dict(content))}


def _iter_protocols(protocols: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield model, protocol and its figures; a confusion matrix is a table, which the report has."""
    for model, by_protocol in protocols.items():
        for name, found in by_protocol.items():
            if name != "confusion":
                yield model, name, found


def _drop_per_class(value: Any) -> Any:
    return {key: item for key, item in value.items() if key != "per_class"} if isinstance(value, dict) else value


def _iter_numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Yield path and value of the finite numbers at any depth; null and text are skipped."""
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
    """Turn a key, such as a class name, into one valid part of a metric name: MLflow refuses ``a//b`` and ``../b``."""
    part = key.replace("/", "_")[:_MAX_PART_LENGTH]
    return part if part.strip(".") else f"_{part}"


def _unique_name(name: str, taken: dict[str, float]) -> str:
    """Replace characters that MLflow refuses; names that become equal are numbered."""
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
