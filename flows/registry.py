"""The teacher of a round as a registered model version, and which version is champion."""

import importlib.metadata
import io
import json
from contextlib import redirect_stderr
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

import tasks

CANDIDATE, CHAMPION = "candidate", "champion"
_KEY, _MAP, _VALIDATION, _PROMOTION = (
    "gleaner.round_key",
    "gleaner.teacher_map",
    "gleaner.validation_md5",
    "gleaner.promotion",
)
_RUNTIME = (
    "gleaner",
    "torch",
    "torchvision",
    "timm",
    "detectron2",
    "pillow",
    "pyarrow",
    "pydantic",
    "PyYAML",
)
"""What a place that serves the model must have; named, because guessing imports the model."""


@dataclass(frozen=True)
class Registered:
    """What is registered, and what decides on its promotion."""

    model_name: str
    round_key: str
    round_number: int
    weights: Path
    params: Path
    teacher_map: float
    """Percent, on the validation set."""
    validation_md5: str


def register_teacher(client: MlflowClient, experiment_id: str, teacher: Registered) -> tuple[int, dict[str, Any]]:
    """The round's model version and what was decided about it; made once and decided once."""
    version = _find_version(client, teacher) or _register(client, experiment_id, teacher)
    number = str(version.version)
    if _PROMOTION in version.tags:
        promotion: dict[str, Any] = json.loads(version.tags[_PROMOTION])
    else:
        promotion = decide(teacher, int(number), champion(client, teacher.model_name))
        client.set_model_version_tag(teacher.model_name, number, _PROMOTION, json.dumps(promotion))
    client.set_registered_model_alias(teacher.model_name, CANDIDATE, number)
    if promotion["promoted"]:
        client.set_registered_model_alias(teacher.model_name, CHAMPION, number)
    return int(number), promotion


def champion(client: MlflowClient, model_name: str) -> ModelVersion | None:
    """The champion's version, if there is one."""
    try:
        return client.get_model_version_by_alias(model_name, CHAMPION)
    except MlflowException:  # MLflow's only way to say that the alias is not set
        return None


def decide(teacher: Registered, version: int, reigning: ModelVersion | None) -> dict[str, Any]:
    """Whether a teacher becomes champion: not worse than the reigning one on the same validation set.

    Returns:
        promoted, from, to, why, figures in percent, who and when.
    """
    reigning_map = None if reigning is None else float(reigning.tags[_MAP])
    same_validation = reigning is not None and reigning.tags[_VALIDATION] == teacher.validation_md5
    if reigning_map is None:
        promoted, why = True, "there is no champion yet"
    elif not same_validation:
        promoted, why = False, "the champion was measured on another validation set"
    elif teacher.teacher_map >= reigning_map:
        promoted, why = True, f"mAP {teacher.teacher_map:.2f} is not below the champion's {reigning_map:.2f}"
    else:
        promoted, why = False, f"mAP {teacher.teacher_map:.2f} is below the champion's {reigning_map:.2f}"
    return {
        "promoted": promoted,
        "from": None if reigning is None else int(reigning.version),
        "to": version,
        "why": why,
        "teacher_map": teacher.teacher_map,
        "champion_map": reigning_map,
        "validation_md5": teacher.validation_md5,
        "who": "gleaner night",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _find_version(client: MlflowClient, teacher: Registered) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{teacher.model_name}' and tags.`{_KEY}` = '{teacher.round_key}'")
    return found[0] if found else None


def _register(client: MlflowClient, experiment_id: str, teacher: Registered) -> ModelVersion:
    model_id = _find_logged(client, experiment_id, teacher) or _log_model(teacher)
    tags = {
        _KEY: teacher.round_key,
        _MAP: repr(teacher.teacher_map),
        _VALIDATION: teacher.validation_md5,
        "gleaner.round": str(teacher.round_number),
    }
    with redirect_stderr(io.StringIO()):  # MLflow prints what it did past all logging
        mlflow.register_model(f"models:/{model_id}", teacher.model_name, tags=tags)
    version = _find_version(client, teacher)
    assert version is not None
    return version


def _find_logged(client: MlflowClient, experiment_id: str, teacher: Registered) -> str | None:
    """A model that an earlier attempt logged whole and could not register any more."""
    found = client.search_logged_models([experiment_id], filter_string=f"tags.`{_KEY}` = '{teacher.round_key}'")
    ready = [model.model_id for model in found if str(model.status) == "READY"]
    return ready[0] if ready else None


def _log_model(teacher: Registered) -> str:
    logged = mlflow.pyfunc.log_model(
        name="teacher",
        python_model=str(Path(tasks.__file__).parent / "served_model.py"),
        artifacts={"teacher": str(teacher.weights), "params": str(teacher.params)},
        pip_requirements=_requirements(),
        step=teacher.round_number,
        tags={_KEY: teacher.round_key},
    )
    return str(logged.model_id)


def _requirements() -> list[str]:
    installed = {name: _version(name) for name in _RUNTIME}
    return [f"{name}=={version}" if version else name for name, version in installed.items()]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None
