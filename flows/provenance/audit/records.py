"""Audit of MLflow: its runs, model versions, artifacts and aliases against the ledgers and the promotion log."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from flows.provenance.audit import AuditScope, Check, count_rounds, make_check
from flows.provenance.snapshot import RoundSnapshot
from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_metrics import flatten_metrics, flatten_params
from flows.tracking.mlflow_run import (
    ARTIFACTS,
    CANDIDATE,
    CHAMPION,
    INPUTS,
    LEDGER_SHA256,
    provenance_tags,
    silence_mlflow,
    use_tracking_uri,
    version_by_alias,
)
from flows.workspace.dvc_cache import MissingDataError, file_md5
from flows.workspace.promotion_log import current_champion
from flows.workspace.rounds import ledger_sha256
from tasks.storage import files

_RELATIVE_TOLERANCE = 1e-9


def mlflow_checks(scope: AuditScope) -> Iterator[Check]:
    """Check runs, metrics, parameters, inputs, model versions, artifacts and aliases."""
    uri = tracking_uri(scope.workspace.root)
    database = scope.workspace.root / "mlflow.db"
    if "MLFLOW_TRACKING_URI" not in os.environ and not database.is_file():
        reason = "there is no mlflow.db in the workspace, and MLFLOW_TRACKING_URI is not set"
        yield Check("MLflow", "runs and model versions", "nothing", skip_reason=reason)
        return
    silence_mlflow()
    with use_tracking_uri(uri):
        client = MlflowClient()
        for name, entity, findings in (
            ("metrics, parameters and inputs of runs", "run", lambda snapshot: _run_findings(client, snapshot)),
            ("tags of model versions", "model version", lambda snapshot: _version_findings(client, snapshot)),
            ("stored teachers and artifacts", "artifacts", _artifact_findings),
        ):
            found = [line for snapshot in scope.rounds.values() for line in _guarded(snapshot, entity, findings)]
            yield make_check("MLflow", name, count_rounds(scope), found)
        if scope.is_complete:
            found = _alias_findings(scope, client)
            yield make_check("MLflow", "aliases follow the promotion log", f"{CANDIDATE}, {CHAMPION}", found)


def _guarded(snapshot: RoundSnapshot, entity: str, findings: Callable[[RoundSnapshot], Iterator[str]]) -> Iterator[str]:
    try:
        yield from findings(snapshot)
    except MissingDataError as error:
        yield str(error)
    except MlflowException as error:
        yield f"MLflow {entity} of {snapshot.tag}: the answer is an error ({str(error).splitlines()[0]})"


def _run_findings(client: MlflowClient, snapshot: RoundSnapshot) -> Iterator[str]:
    run_id = snapshot.ledger["mlflow"]["run_id"]
    run = client.get_run(run_id)
    where = f"MLflow run {snapshot.tag}"
    if run.info.status != "FINISHED":
        yield f"{where}: status is {run.info.status}, expected FINISHED"
    yield from _metric_findings(where, snapshot, run.data.metrics)
    for name, value in flatten_params(snapshot.raw_params()).items():
        if not _is_same_value(run.data.params.get(name, ""), value):
            yield f"{where}: parameter {name} is {run.data.params.get(name)!r}, expected {value!r} of params.yaml"
    yield from _tag_findings(where, snapshot, run.data.tags)
    yield from _input_findings(where, snapshot, run)


def _metric_findings(where: str, snapshot: RoundSnapshot, actual: Mapping[str, float]) -> Iterator[str]:
    measured = json.loads(snapshot.read_blob("derived/evaluate/metrics.json"))
    expected = flatten_metrics(snapshot.ledger["metrics"], measured, snapshot.ledger["times"]["stage_seconds"])
    for name, value in expected.items():
        if name not in actual:
            yield f"{where}: metric {name} is missing, expected {value!r}"
        elif abs(actual[name] - value) > _RELATIVE_TOLERANCE * max(1.0, abs(value)):
            yield f"{where}: metric {name} is {actual[name]!r}, expected {value!r}"


def _is_same_value(one: str, other: str) -> bool:
    """Compare a parameter in MLflow with one in params.yaml.

    14 and 14.0 are equal: params.yaml has what was typed, MLflow the value as the parameter's type formats it.
    """
    if one == other:
        return True
    try:
        return bool(yaml.safe_load(one) == yaml.safe_load(other))
    except yaml.YAMLError:
        return False


def _tag_findings(where: str, snapshot: RoundSnapshot, tags: Mapping[str, str]) -> Iterator[str]:
    expected = {**provenance_tags(snapshot.ledger), LEDGER_SHA256: ledger_sha256(snapshot.workspace, snapshot.number)}
    for name, value in expected.items():
        if tags.get(name) != value:
            yield f"{where}: tag {name} is {tags.get(name)!r}, expected {value!r}"


def _input_findings(where: str, snapshot: RoundSnapshot, run: Run) -> Iterator[str]:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    logged = {item.dataset.name: {tag.key: tag.value for tag in item.tags} for item in inputs}
    for name, stage, path, _ in INPUTS:
        md5 = snapshot.ledger["stages"][stage]["deps"][path]
        actual = logged.get(name, {}).get("dvc_md5")
        if actual != md5:
            yield f"{where}: MD5 of input {name} is {actual}, expected {md5}"


def _version_findings(client: MlflowClient, snapshot: RoundSnapshot) -> Iterator[str]:
    mlflow_ref = snapshot.ledger["mlflow"]
    version = client.get_model_version(mlflow_ref["model_name"], str(mlflow_ref["model_version"]))
    yield from _tag_findings(f"MLflow model version {mlflow_ref['model_version']}", snapshot, version.tags)


def _artifact_findings(snapshot: RoundSnapshot) -> Iterator[str]:
    run_id = snapshot.ledger["mlflow"]["run_id"]
    where = f"MLflow run {snapshot.tag}"
    with tempfile.TemporaryDirectory() as folder:
        yield from _teacher_artifact_findings(snapshot, Path(folder))
        for path in ARTIFACTS:
            artifact = (Path(Path(path).parent.name) / Path(path).name).as_posix()
            local = download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=folder)
            actual, expected = file_md5(Path(local)), _expected_md5(snapshot, path)
            if expected is not None and actual != expected:
                yield f"{where}: MD5 of artifact {artifact} is {actual}, expected {expected} of {path}"
        artifact = f"ledger/{snapshot.tag}.json"
        local = download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=folder)
        digest = ledger_sha256(snapshot.workspace, snapshot.number)
        actual = files.sha256_file(Path(local))
        if actual != digest:
            yield f"{where}: SHA-256 of artifact {artifact} is {actual}, expected {digest}"


def _teacher_artifact_findings(snapshot: RoundSnapshot, folder: Path) -> Iterator[str]:
    mlflow_ref = snapshot.ledger["mlflow"]
    uri = f"models:/{mlflow_ref['model_name']}/{mlflow_ref['model_version']}"
    local = Path(download_artifacts(artifact_uri=uri, dst_path=str(folder / "model")))
    digests = sorted({files.sha256_file(path) for path in local.rglob("teacher.pth")})
    expected = snapshot.ledger["teacher"]["sha256"]
    if digests != [expected]:
        where = f"MLflow model version {mlflow_ref['model_version']}"
        yield f"{where}: SHA-256 of teacher.pth is {', '.join(digests) or 'missing'}, expected {expected}"


def _expected_md5(snapshot: RoundSnapshot, path: str) -> str | None:
    """MD5 that the source of an artifact had in the round; None where it is missing, which another check reports."""
    try:
        if path == "params.yaml":  # in git, and no stage's output
            return hashlib.md5(snapshot.read_blob(path), usedforsecurity=False).hexdigest()
        return snapshot.md5(path)
    except MissingDataError:
        return None


def _alias_findings(scope: AuditScope, client: MlflowClient) -> list[str]:
    champion = current_champion(scope.workspace)
    mlflow_ref = scope.newest.ledger["mlflow"]
    found = []
    for alias, expected in (
        (CHAMPION, champion.version if champion else None),
        (CANDIDATE, mlflow_ref["model_version"]),
    ):
        current = version_by_alias(client, mlflow_ref["model_name"], alias)
        actual = None if current is None else int(current.version)
        if actual != expected:
            found.append(f"MLflow alias {alias}: version is {actual}, expected {expected}")
    return found
