"""Register the teacher of a round as a model version. ``flows.registry.promotion`` decides which one is champion."""

import importlib.metadata
import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

import tasks

CANDIDATE, CHAMPION = "candidate", "champion"
_ROUND_KEY_TAG = "gleaner.round_key"
_RUNTIME_PACKAGES = (
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
"""Requirements of serving the model. Listed here because MLflow would load the model to infer them."""


@dataclass(frozen=True)
class ModelRegistration:
    """A teacher to register."""

    model_name: str
    round_key: str
    """Identifies the derivation of the round; a version is registered once per key."""
    round_number: int
    weights: Path
    params: Path
    """The params.yaml that the served model is configured by."""


def register_teacher(client: MlflowClient, experiment_id: str, teacher: ModelRegistration) -> int:
    """Register the teacher unless it is registered already, set alias ``candidate``, and return the version."""
    version = _find_version(client, teacher) or _register_version(client, experiment_id, teacher)
    number = str(version.version)
    client.set_registered_model_alias(teacher.model_name, CANDIDATE, number)
    return int(number)


def version_by_alias(client: MlflowClient, model_name: str, alias: str) -> ModelVersion | None:
    """Return the version that an alias names; None where the alias is not set."""
    try:
        return client.get_model_version_by_alias(model_name, alias)
    except MlflowException:  # raised where the alias is not set
        return None


def _find_version(client: MlflowClient, teacher: ModelRegistration) -> ModelVersion | None:
    found = client.search_model_versions(
        f"name = '{teacher.model_name}' and tags.`{_ROUND_KEY_TAG}` = '{teacher.round_key}'"
    )
    return found[0] if found else None


def _register_version(client: MlflowClient, experiment_id: str, teacher: ModelRegistration) -> ModelVersion:
    model_id = _find_logged_model(client, experiment_id, teacher) or _log_model(teacher)
    tags = {_ROUND_KEY_TAG: teacher.round_key, "gleaner.round": str(teacher.round_number)}
    with redirect_stderr(io.StringIO()):  # MLflow prints its progress to stderr
        mlflow.register_model(f"models:/{model_id}", teacher.model_name, tags=tags)
    version = _find_version(client, teacher)
    assert version is not None
    return version


def _find_logged_model(client: MlflowClient, experiment_id: str, teacher: ModelRegistration) -> str | None:
    """Id of a model that an interrupted attempt logged completely but did not register."""
    found = client.search_logged_models(
        [experiment_id], filter_string=f"tags.`{_ROUND_KEY_TAG}` = '{teacher.round_key}'"
    )
    ready = [model.model_id for model in found if str(model.status) == "READY"]
    return ready[0] if ready else None


def _log_model(teacher: ModelRegistration) -> str:
    logged = mlflow.pyfunc.log_model(
        name="teacher",
        python_model=str(Path(tasks.__file__).parent / "model" / "pyfunc_model.py"),
        artifacts={"teacher": str(teacher.weights), "params": str(teacher.params)},
        pip_requirements=_pip_requirements(),
        step=teacher.round_number,
        tags={_ROUND_KEY_TAG: teacher.round_key},
    )
    return str(logged.model_id)


def _pip_requirements() -> list[str]:
    installed = {name: _installed_version(name) for name in _RUNTIME_PACKAGES}
    return [f"{name}=={version}" if version else name for name, version in installed.items()]


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None
