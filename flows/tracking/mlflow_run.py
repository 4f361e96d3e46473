"""Log a round in MLflow and register its teacher: one experiment per campaign, one run per round, found by its key.

A repeated call logs the same names, steps and timestamps, which MLflow stores once.

Run and model version get tags and a description with the digests and names by which the round is found in git and DVC.
They are taken from the ledger, whose own digest is among the tags.
"""

import html
import importlib.metadata
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow
import mlflow.utils.environment
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LifecycleStage, Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

import tasks
from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_metrics import round_metrics, round_params
from flows.tracking.mlflow_owner import (
    CAMPAIGN_TAG,
    GIT_REVISION_TAG,
    OWNER_PLACE_TAG,
    OWNER_TAG,
    ROUND_NUMBER_TAG,
    SUPERSEDED_TAG,
    artifact_location,
    claim,
    claim_model,
    find_experiment,
    has_own_artifacts,
    require_tracked_owner,
    tracked_owner,
)
from flows.workspace import git
from flows.workspace.dvc import locked_stages, recorded_md5s
from flows.workspace.lock import ProcessIdentity
from flows.workspace.owner import Owner, require_own_folder
from flows.workspace.rounds import MlflowRef, read_history_entry, round_fingerprint
from tasks.data.label_store import read_batch
from tasks.data.paths import Workspace
from tasks.params import Params
from tasks.runtime.formatting import pluralize
from tasks.storage import files

PROCESS_TAG = "gleaner.process"
"""The process that writes a run; after a crash, the next process closes its runs."""
_REQUIREMENT_CHECK = "warn_dependency_requirement_mismatches"
log = logging.getLogger(__name__)
_ROUND_KEY_TAG = "gleaner.round_key"
_BATCH_SIZE = 100
_MAX_DIGEST_LENGTH = 36
_MAX_ANNOTATORS_LENGTH = 2000
_MAX_ANNOTATOR_LENGTH = 200
_MAX_NAME_LENGTH = 100  # of experiment and model; databases take 256
_MARKUP = re.compile(r"[\\`*_{}\[\]()#+!|~]")
_NOTE_TAG = "mlflow.note.content"  # shown as the description in MLflow
_DATA_SETS = {
    "Labels": "data/labels",
    "Pool": "data/index.parquet",
    "Validation set": "data/val.parquet",
    "Calibration set": "data/calibration.parquet",
}
EXPORT_KEY_TAG, PARENT_MODEL_TAG = "gleaner.export_key", "gleaner.parent_model"
"""Of an exported model: what identifies its network, and ``name/version`` of the model it was made of."""
LEDGER_SHA256, TEACHER_SHA256 = "gleaner.ledger_sha256", "gleaner.teacher_sha256"
INPUTS = (
    ("pool", "prepare", "data/index.parquet", "pool"),
    ("labels", "assemble", "data/labels", "training"),
    ("validation", "assemble", "data/val.parquet", "validation"),
    ("calibration", "assemble", "data/calibration.parquet", "calibration"),
)
"""Data sets of a run: name, stage that reads it, path, and context in MLflow."""
ARTIFACTS = (
    "derived/report/report.html",
    "derived/report/history.json",
    "derived/weigh/dwa.json",
    "derived/weigh/class_weights.json",
    "derived/select/selection.parquet",
    "derived/evaluate/metrics.json",
    "derived/train/curves.parquet",
    "params.yaml",
)
CANDIDATE, CHAMPION = "candidate", "champion"
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


@dataclass(frozen=True)
class RoundRun:
    """The open run of a round."""

    client: MlflowClient
    mlflow_ref: MlflowRef

    def record_ledger(self, ledger: Path) -> None:
        """Log a copy of the ledger, and set tags and description of run and model version from it."""
        set_provenance_tags(self.client, self.mlflow_ref, ledger)


@contextmanager
def mlflow_run(workspace: Workspace, params: Params, round_number: int, revision: str) -> Iterator[RoundRun]:
    """Open the round's run, log the round and register its teacher; leaving the context finishes the run.

    Args:
        workspace: a derived round.
        params: its parameters.
        round_number: number of the round.
        revision: the commit that holds the derivation.
    """
    silence_mlflow()
    with use_tracking_uri(tracking_uri(workspace.root)):
        yield from _open_mlflow_run(workspace, params, round_number, revision)


@contextmanager
def use_tracking_uri(uri: str) -> Iterator[None]:
    """Set MLflow's tracking URI within the context, and restore it afterwards.

    MLflow also writes it to the environment, where a second campaign would take it for the user's setting.
    """
    previous_uri = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if previous_uri is not None:
            os.environ["MLFLOW_TRACKING_URI"] = previous_uri


def _open_mlflow_run(workspace: Workspace, params: Params, round_number: int, revision: str) -> Iterator[RoundRun]:
    client, owner = MlflowClient(), require_own_folder(workspace)
    campaign = git.campaign_id(workspace.root)
    require_tracked_owner(workspace, client, owner)
    experiment_id, name = find_or_create_experiment(client, workspace, campaign, owner)
    key = f"{campaign[:12]}/{git.round_tag(round_number)}/{round_fingerprint(workspace)[:12]}"
    run_id = _find_or_create_run(client, experiment_id, key, round_number, owner)
    with mlflow.start_run(run_id=run_id):
        mlflow.set_tag(PROCESS_TAG, str(ProcessIdentity.own()))
        _log_round(client, workspace, params, round_number, run_id)
        _log_inputs(workspace, revision)
        teacher = _teacher_registration(workspace, round_number, key, name)
        version = register_teacher(client, experiment_id, teacher)
        claim_model(client, name, owner)
        yield RoundRun(client, MlflowRef(name, run_id, name, version))
    _end_stale_runs(client, experiment_id, key, round_number)


def silence_mlflow() -> None:
    """Keep start-up messages of MLflow and its database migrations out of the log."""
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.WARNING)


def find_or_create_experiment(
    client: MlflowClient, workspace: Workspace, campaign: str, owner: Owner
) -> tuple[str, str]:
    """Return id and name of the campaign's experiment, owned by this folder; a deleted one is restored.

    It is found by its tag, so the folder may be renamed. While it is deleted, MLflow keeps its name reserved: another
    one of that name cannot be created.
    """
    experiment = find_experiment(client, campaign)
    if experiment is None:
        root = workspace.root.resolve()
        name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', root.name)[:_MAX_NAME_LENGTH]}-{campaign[:8]}"
        tags = {CAMPAIGN_TAG: campaign, OWNER_TAG: owner.owner_id, OWNER_PLACE_TAG: str(owner.place)}
        location = artifact_location(root) if has_own_artifacts(root) else None  # a server has its own location
        return client.create_experiment(name, artifact_location=location, tags=tags), name
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        log.warning("The MLflow experiment %s was deleted. It is restored.", experiment.name)
        client.restore_experiment(experiment.experiment_id)
    if tracked_owner(experiment).place != str(owner.place):
        claim(client, experiment.experiment_id, owner)
    return experiment.experiment_id, experiment.name


def _find_or_create_run(client: MlflowClient, experiment_id: str, key: str, round_number: int, owner: Owner) -> str:
    found = client.search_runs(
        [experiment_id], f"tags.`{_ROUND_KEY_TAG}` = '{key}'", order_by=["attributes.start_time ASC"]
    )
    if found:
        return str(found[0].info.run_id)
    tags = {
        _ROUND_KEY_TAG: key,
        ROUND_NUMBER_TAG: str(round_number),
        PROCESS_TAG: str(ProcessIdentity.own()),
        OWNER_TAG: owner.owner_id,
    }
    return str(client.create_run(experiment_id, run_name=git.round_tag(round_number), tags=tags).info.run_id)


def _end_stale_runs(client: MlflowClient, experiment_id: str, key: str, round_number: int) -> None:
    """Terminate runs of earlier derivations of the round, with other parameters or code."""
    for run in client.search_runs([experiment_id], f"tags.`{ROUND_NUMBER_TAG}` = '{round_number}'"):
        if run.data.tags[_ROUND_KEY_TAG] != key and SUPERSEDED_TAG not in run.data.tags:
            client.set_tag(run.info.run_id, SUPERSEDED_TAG, key)
            client.set_terminated(run.info.run_id, "KILLED")


def _log_round(client: MlflowClient, workspace: Workspace, params: Params, round_number: int, run_id: str) -> None:
    history_entry = read_history_entry(workspace, round_number)
    collected_at = read_batch(workspace.label_batch(round_number)).collected_at
    timestamp_ms = int(datetime.fromisoformat(collected_at).timestamp() * 1000)  # the same in every attempt
    values = round_metrics(workspace, round_number, history_entry)
    metrics = [Metric(name, value, timestamp_ms, round_number) for name, value in values.items()]
    params_batch = [Param(name, text) for name, text in round_params(params).items()]
    for start in range(0, len(params_batch), _BATCH_SIZE):
        client.log_batch(run_id, params=params_batch[start : start + _BATCH_SIZE])
    for start in range(0, len(metrics), _BATCH_SIZE):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH_SIZE])
    for path in ARTIFACTS:
        client.log_artifact(run_id, str(workspace.root / path), Path(path).parent.name)


def _log_inputs(workspace: Workspace, revision: str) -> None:
    locked = locked_stages(workspace)
    for name, stage, path, context in INPUTS:
        md5 = recorded_md5s(locked[stage], "deps")[path]
        source_tags = {"dvc_path": path, "dvc_md5": md5, "git_revision": revision}
        source = CodeDatasetSource(source_tags)
        dataset = MetaDataset(source, name=name, digest=md5[:_MAX_DIGEST_LENGTH])  # type: ignore[abstract]
        mlflow.log_input(dataset, context=context, tags=source_tags)


def _teacher_registration(workspace: Workspace, round_number: int, key: str, name: str) -> ModelRegistration:
    return ModelRegistration(
        model_name=name,
        round_key=key,
        round_number=round_number,
        weights=workspace.derived("train") / "teacher.pth",
        params=workspace.params,
    )


def set_provenance_tags(client: MlflowClient, mlflow_ref: MlflowRef, ledger_path: Path) -> None:
    """Log a copy of the ledger, and set tags and description of the run and the model version."""
    ledger: dict[str, Any] = files.read_json(ledger_path)
    client.log_artifact(mlflow_ref.run_id, str(ledger_path), "ledger")
    tags = {**provenance_tags(ledger), LEDGER_SHA256: files.sha256_file(ledger_path)}
    description = _description(ledger, tags, _report_url(client, mlflow_ref))
    for key, value in {**tags, _NOTE_TAG: description}.items():
        client.set_tag(mlflow_ref.run_id, key, value)
    for key, value in tags.items():
        client.set_model_version_tag(mlflow_ref.model_name, str(mlflow_ref.model_version), key, value)
    client.update_model_version(mlflow_ref.model_name, str(mlflow_ref.model_version), description)


def provenance_tags(ledger: Mapping[str, Any]) -> dict[str, str]:
    """Build the tags by which a round is found in git and DVC."""
    code = ledger["environment"]["gleaner"]
    deps = _input_md5s(ledger)
    return {
        "gleaner.tag": ledger["tag"],
        "gleaner.round": str(ledger["round"]),
        "gleaner.parent_round": _parent_tag(ledger),
        GIT_REVISION_TAG: ledger["git_revision"],
        TEACHER_SHA256: ledger["teacher"]["sha256"],
        "gleaner.started_from_sha256": ledger["teacher"]["started_from_sha256"] or "none",
        "gleaner.labels": str(ledger["metrics"]["labels"]),
        "gleaner.labels_md5": deps["data/labels"],
        "gleaner.pool_md5": deps["data/index.parquet"],
        "gleaner.validation_md5": deps["data/val.parquet"],
        "gleaner.selection_sha256": ledger["selection_sha256"],
        "gleaner.params_sha256": ledger["params_sha256"],
        "gleaner.packages_sha256": ledger["environment"]["packages_sha256"],
        "gleaner.code_revision": str(code["git_revision"] or code["version"]),
        "gleaner.code_dirty": str(code["dirty"]),
    }


def _input_md5s(ledger: Mapping[str, Any]) -> dict[str, str]:
    """MD5 of the stages' inputs, by path."""
    return {path: md5 for stage in ledger["stages"].values() for path, md5 in stage["deps"].items()}


def _parent_tag(ledger: Mapping[str, Any]) -> str:
    return git.round_tag(ledger["round"] - 1) if ledger["round"] else "none"


def _report_url(client: MlflowClient, mlflow_ref: MlflowRef) -> str:
    """URL of the report inside MLflow; relative, so that it works under any address of the server."""
    experiment = client.get_run(mlflow_ref.run_id).info.experiment_id
    return f"#/experiments/{experiment}/runs/{mlflow_ref.run_id}/artifacts/report/report.html"


def _description(ledger: Mapping[str, Any], tags: Mapping[str, str], report_url: str) -> str:
    """Description in Markdown. Lists in MLflow show only its first line, which names round, labels and mAP."""
    metrics, deps = ledger["metrics"], _input_md5s(ledger)
    annotators: dict[str, int] = {}
    for batch in ledger["labels"]:
        for name, count in batch["annotators"].items():
            annotators[name] = annotators.get(name, 0) + count
    images, boxes = pluralize(metrics["labels"], "image"), pluralize(metrics["boxes"], "box", "boxes")
    rows = {
        "Labels": f"{images}, the calibration set included, and {boxes}",
        "Annotators": _annotators_text(annotators),
        "Teacher mAP": f"{metrics['teacher']['mAP']:.2f}",
        "Parent round": tags["gleaner.parent_round"],
        "Code revision": tags["gleaner.code_revision"] + (" with uncommitted changes" if _is_dirty(ledger) else ""),
        "Campaign revision": f"{ledger['git_revision']} (tag {ledger['tag']})",
        **{f"{title}, MD5": deps[path] for title, path in _DATA_SETS.items()},
        "Ledger, SHA-256": tags[LEDGER_SHA256],
        "Teacher, SHA-256": tags[TEACHER_SHA256],
        "Report": f"[report.html]({report_url}), an artifact of the run",
    }
    headline = (
        f"{ledger['tag']}: {pluralize(metrics['labels'], 'label')}, teacher mAP {metrics['teacher']['mAP']:.1f}. "
    )
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    lineage = f"gleaner lineage {ledger['mlflow']['model_name']}/{ledger['mlflow']['model_version']}"
    footer = f"Lineage: `{lineage}`. Audit: `gleaner audit`.\n"
    return f"{headline}[Report]({report_url})\n\n| {ledger['tag']} | |\n| --- | --- |\n{table}\n{footer}"


def _annotators_text(annotators: Mapping[str, int]) -> str:
    """Names with the number of their annotations, most first; bounded, because databases limit the description."""
    ordered = sorted(annotators.items(), key=lambda item: (-item[1], item[0]))
    shown, length = [], 0
    for name, count in ordered:
        text = f"{_markdown_text(name)} ({count})"
        length += len(text) + 2
        if length > _MAX_ANNOTATORS_LENGTH:
            break
        shown.append(text)
    rest = len(ordered) - len(shown)
    return ", ".join([*shown, f"and {rest} others"] if rest else shown)


def _markdown_text(text: str) -> str:
    """Escape what Markdown or HTML would read as markup, such as pictures from outside."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return _MARKUP.sub(r"\\\g<0>", html.escape(printable[:_MAX_ANNOTATOR_LENGTH], quote=False))


def _is_dirty(ledger: Mapping[str, Any]) -> bool:
    return bool(ledger["environment"]["gleaner"]["dirty"])


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
    with without_requirement_check():
        logged = mlflow.pyfunc.log_model(
            name="teacher",
            python_model=str(Path(tasks.__file__).parent / "model" / "pyfunc_model.py"),
            artifacts={"teacher": str(teacher.weights), "params": str(teacher.params)},
            pip_requirements=_pip_requirements(),
            step=teacher.round_number,
            tags={_ROUND_KEY_TAG: teacher.round_key},
        )
    return str(logged.model_id)


@contextmanager
def without_requirement_check() -> Iterator[None]:
    """Log a model without a look at every installed file, which takes 3 s of a core.

    MLflow warns of requirements that this environment does not have. Ours are read from what is installed, and MLflow
    has no setting for it. Where it has renamed the function, the look is taken again.
    """
    original = getattr(mlflow.utils.environment, _REQUIREMENT_CHECK, None)
    if original is None:
        yield
        return
    setattr(mlflow.utils.environment, _REQUIREMENT_CHECK, lambda _requirements: None)
    try:
        yield
    finally:
        setattr(mlflow.utils.environment, _REQUIREMENT_CHECK, original)


def _pip_requirements() -> list[str]:
    installed = {name: _installed_version(name) for name in _RUNTIME_PACKAGES}
    return [f"{name}=={version}" if version else name for name, version in installed.items()]


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None
