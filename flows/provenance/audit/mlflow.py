"""MLflow against the ledgers: it is a view on them, so it must say the same."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import mlflow
import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from flows.provenance.audit.findings import AuditScope, Check, make_check
from flows.provenance.snapshot import RoundSnapshot
from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_metrics import flatten_metrics, flatten_params
from flows.tracking.mlflow_registry import CANDIDATE, CHAMPION, version_by_alias
from flows.tracking.mlflow_run import (
    ARTIFACTS,
    INPUTS,
    LEDGER_SHA256,
    provenance_tags,
    silence_mlflow,
    use_tracking_uri,
)
from flows.workspace.dvc_cache import MissingDataError, file_md5
from flows.workspace.ledger import ledger_sha256
from flows.workspace.promotion_log import current_champion
from tasks.storage import files

_TOLERANCE = 1e-9


def mlflow_checks(scope: AuditScope) -> Iterator[Check]:
    """Runs, metrics, parameters, inputs, versions, artifacts and aliases."""
    uri = tracking_uri(scope.workspace.root)
    database = scope.workspace.root / "mlflow.db"
    if "MLFLOW_TRACKING_URI" not in os.environ and not database.is_file():
        missing = "there is no mlflow.db here, and MLFLOW_TRACKING_URI names no server"
        yield Check("MLflow", "runs and versions", "nothing", skipped=missing)
        return
    silence_mlflow()
    counted = f"{len(scope.rounds)} rounds"
    with use_tracking_uri(uri):
        client = MlflowClient()
        runs, versions, stored = [], [], []
        for snapshot in scope.rounds.values():
            runs += list(_guarded(snapshot, "run", lambda one: _run_findings(client, one)))
            versions += list(_guarded(snapshot, "version", lambda one: _version_findings(client, one)))
            stored += list(_guarded(snapshot, "artifact", lambda one: _artifact_findings(one)))
        yield make_check("MLflow", "metrics, parameters and inputs of runs", counted, runs)
        yield make_check("MLflow", "model versions and their tags", counted, versions)
        yield make_check("MLflow", "stored teachers and artifacts", counted, stored)
        if scope.is_complete:
            yield make_check(
                "MLflow", "aliases follow the promotion log", "candidate, champion", _alias_findings(scope, client)
            )


def _guarded(snapshot: RoundSnapshot, entity: str, find: Callable[[RoundSnapshot], Iterator[str]]) -> Iterator[str]:
    try:
        yield from find(snapshot)
    except MissingDataError as error:
        yield str(error)
    except MlflowException as error:
        yield f"MLflow: the {entity} of {snapshot.tag} cannot be read: {str(error).splitlines()[0]}"


def _run_findings(client: MlflowClient, snapshot: RoundSnapshot) -> Iterator[str]:
    run_id = snapshot.ledger["mlflow"]["run_id"]
    run = client.get_run(run_id)
    where = f"MLflow run {snapshot.tag}"
    if run.info.status != "FINISHED":
        yield f"{where} is {run.info.status}, expected FINISHED"
    yield from _metric_findings(where, snapshot, run.data.metrics)
    for name, value in flatten_params(snapshot.raw_params()).items():
        if not _is_same_value(run.data.params.get(name, ""), value):
            yield f"{where}: parameter {name} is {run.data.params.get(name)!r}, in params.yaml {value!r}"
    yield from _tag_findings(where, snapshot, run.data.tags)
    yield from _input_findings(where, snapshot, run)


def _metric_findings(where: str, snapshot: RoundSnapshot, actual: Mapping[str, float]) -> Iterator[str]:
    measured = json.loads(snapshot.read_blob("derived/evaluate/metrics.json"))
    expected = flatten_metrics(snapshot.ledger["metrics"], measured, snapshot.ledger["times"]["stage_seconds"])
    for name, value in expected.items():
        if name not in actual:
            yield f"{where}: metric {name} is missing, the ledger's is {value:g}"
        elif abs(actual[name] - value) > _TOLERANCE * max(1.0, abs(value)):
            yield f"{where}: metric {name} is {actual[name]!r}, the ledger's is {value!r}"


def _is_same_value(one: str, other: str) -> bool:
    """14 and 14.0 are one value: YAML keeps what a person typed, MLflow what the parameter's type made of it."""
    if one == other:
        return True
    try:
        return bool(yaml.safe_load(one) == yaml.safe_load(other))
    except yaml.YAMLError:
        return False


def _tag_findings(where: str, snapshot: RoundSnapshot, tags: Mapping[str, str]) -> Iterator[str]:
    if snapshot.ledger["format"] == 1:
        return
    expected = {**provenance_tags(snapshot.ledger), LEDGER_SHA256: ledger_sha256(snapshot.workspace, snapshot.number)}
    for name, value in expected.items():
        if tags.get(name) != value:
            yield f"{where}: tag {name} is {tags.get(name)!r}, the ledger's is {value!r}"


def _input_findings(where: str, snapshot: RoundSnapshot, run: Run) -> Iterator[str]:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    logged = {item.dataset.name: {tag.key: tag.value for tag in item.tags} for item in inputs}
    for name, stage, path, _ in INPUTS:
        md5 = snapshot.ledger["stages"][stage]["deps"][path]
        if logged.get(name, {}).get("dvc_md5") != md5:
            yield f"{where}: input {name} has MD5 {logged.get(name, {}).get('dvc_md5')}, the ledger's is {md5}"


def _version_findings(client: MlflowClient, snapshot: RoundSnapshot) -> Iterator[str]:
    mlflow_ref = snapshot.ledger["mlflow"]
    version = client.get_model_version(mlflow_ref["model_name"], str(mlflow_ref["model_version"]))
    yield from _tag_findings(f"MLflow version {mlflow_ref['model_version']}", snapshot, version.tags)


def _artifact_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    mlflow_ref = snapshot.ledger["mlflow"]
    with tempfile.TemporaryDirectory() as folder:
        if snapshot.ledger["format"] > 1:
            yield from _teacher_artifact_findings(snapshot, Path(folder))
        kept = {f"{Path(path).parent.name}/{Path(path).name}".lstrip("/"): path for path in ARTIFACTS}
        for artifact, path in kept.items():
            local = download_artifacts(run_id=mlflow_ref["run_id"], artifact_path=artifact, dst_path=folder)
            expected = _expected_md5(snapshot, path)
            if expected is not None and file_md5(Path(local)) != expected:
                yield f"MLflow run {snapshot.tag}: artifact {artifact} is altered, it is not {path} of the round"
        ledger = f"ledger/{snapshot.tag}.json"
        local = download_artifacts(run_id=mlflow_ref["run_id"], artifact_path=ledger, dst_path=folder)
        if files.sha256_file(Path(local)) != ledger_sha256(snapshot.workspace, snapshot.number):
            yield f"MLflow run {snapshot.tag}: artifact {ledger} is not the workspace's ledger"


def _teacher_artifact_findings(snapshot: RoundSnapshot, folder: Path) -> Iterator[str]:
    mlflow_ref = snapshot.ledger["mlflow"]
    uri = f"models:/{mlflow_ref['model_name']}/{mlflow_ref['model_version']}"
    local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder / "model")))
    digests = {files.sha256_file(path) for path in local.rglob("teacher.pth")}
    expected = snapshot.ledger["teacher"]["sha256"]
    if digests != {expected}:
        yield f"MLflow version {mlflow_ref['model_version']}: its teacher.pth is not the one of {snapshot.tag}"


def _expected_md5(snapshot: RoundSnapshot, path: str) -> str | None:
    """MD5 of an artifact's source, at the round."""
    try:
        if path == "params.yaml":  # no stage's output, and in git
            return hashlib.md5(snapshot.read_blob(path), usedforsecurity=False).hexdigest()
        return snapshot.md5(path)
    except MissingDataError:
        return None


def _alias_findings(scope: AuditScope, client: MlflowClient) -> list[str]:
    ledgers = {number: snapshot.ledger for number, snapshot in scope.rounds.items()}
    champion = current_champion(scope.workspace, ledgers)
    mlflow_ref = scope.newest.ledger["mlflow"]
    found = []
    for alias, expected in (
        (CHAMPION, champion.version if champion else None),
        (CANDIDATE, mlflow_ref["model_version"]),
    ):
        current = version_by_alias(client, mlflow_ref["model_name"], alias)
        actual = None if current is None else int(current.version)
        if actual != expected:
            found.append(f"MLflow alias {alias} names version {actual}, promotions.jsonl and ledgers say {expected}")
    return found
