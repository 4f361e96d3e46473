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

from flows.environment import tracking_uri
from flows.records.audit.findings import Audited, Check, check
from flows.records.dvc_objects import MissingBytesError, md5_of
from flows.records.promotion_log import reigning
from flows.records.recorded import RecordedRound, ledger_sha256
from flows.records.registry import CANDIDATE, CHAMPION, aliased_version
from flows.records.round_metrics import flat_params, metrics_of
from flows.records.tracked_origin import LEDGER_SHA256, origin_tags
from flows.records.tracking import ARTIFACTS, INPUTS, mlflow_at, quiet
from tasks import files

_TOLERANCE = 1e-9


def tracking_checks(audited: Audited) -> Iterator[Check]:
    """Runs, metrics, parameters, inputs, versions, artifacts and aliases."""
    uri = tracking_uri(audited.workspace.root)
    database = audited.workspace.root / "mlflow.db"
    if "MLFLOW_TRACKING_URI" not in os.environ and not database.is_file():
        missing = "there is no mlflow.db here, and MLFLOW_TRACKING_URI names no server"
        yield Check("MLflow", "runs and versions", "nothing", skipped=missing)
        return
    quiet()
    counted = f"{len(audited.rounds)} rounds"
    with mlflow_at(uri):
        client = MlflowClient()
        runs, versions, stored = [], [], []
        for recorded in audited.rounds.values():
            runs += list(_answered(recorded, "run", lambda one: _run_findings(client, one)))
            versions += list(_answered(recorded, "version", lambda one: _version_findings(client, one)))
            stored += list(_answered(recorded, "artifact", lambda one: _artifact_findings(one)))
        yield check("MLflow", "metrics, parameters and inputs of runs", counted, runs)
        yield check("MLflow", "model versions and their tags", counted, versions)
        yield check("MLflow", "stored teachers and artifacts", counted, stored)
        if audited.whole:
            yield check("MLflow", "aliases follow the promotion log", "candidate, champion", _aliases(audited, client))


def _answered(recorded: RecordedRound, what: str, look: Callable[[RecordedRound], Iterator[str]]) -> Iterator[str]:
    try:
        yield from look(recorded)
    except MissingBytesError as error:
        yield str(error)
    except MlflowException as error:
        yield f"MLflow: the {what} of {recorded.name} cannot be read: {str(error).splitlines()[0]}"


def _run_findings(client: MlflowClient, recorded: RecordedRound) -> Iterator[str]:
    run_id = recorded.ledger["mlflow"]["run_id"]
    run = client.get_run(run_id)
    where = f"MLflow run {recorded.name}"
    if run.info.status != "FINISHED":
        yield f"{where} is {run.info.status}, expected FINISHED"
    yield from _metrics(where, recorded, run.data.metrics)
    for name, value in flat_params(recorded.settings()).items():
        if not _same(run.data.params.get(name, ""), value):
            yield f"{where}: parameter {name} is {run.data.params.get(name)!r}, in params.yaml {value!r}"
    yield from _tag_findings(where, recorded, run.data.tags)
    yield from _inputs(where, recorded, run)


def _metrics(where: str, recorded: RecordedRound, actual: Mapping[str, float]) -> Iterator[str]:
    measured = json.loads(recorded.blob("derived/evaluate/metrics.json"))
    expected = metrics_of(recorded.ledger["figures"], measured, recorded.ledger["times"]["stage_seconds"])
    for name, value in expected.items():
        if name not in actual:
            yield f"{where}: metric {name} is missing, the ledger's is {value:g}"
        elif abs(actual[name] - value) > _TOLERANCE * max(1.0, abs(value)):
            yield f"{where}: metric {name} is {actual[name]!r}, the ledger's is {value!r}"


def _same(one: str, other: str) -> bool:
    """14 and 14.0 are one value: YAML keeps what a person typed, MLflow what the parameter's type made of it."""
    if one == other:
        return True
    try:
        return bool(yaml.safe_load(one) == yaml.safe_load(other))
    except yaml.YAMLError:
        return False


def _tag_findings(where: str, recorded: RecordedRound, tags: Mapping[str, str]) -> Iterator[str]:
    if recorded.ledger["format"] == 1:
        return
    expected = {**origin_tags(recorded.ledger), LEDGER_SHA256: ledger_sha256(recorded.workspace, recorded.number)}
    for name, value in expected.items():
        if tags.get(name) != value:
            yield f"{where}: tag {name} is {tags.get(name)!r}, the ledger's is {value!r}"


def _inputs(where: str, recorded: RecordedRound, run: Run) -> Iterator[str]:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    given = {item.dataset.name: {tag.key: tag.value for tag in item.tags} for item in inputs}
    for name, stage, path, _ in INPUTS:
        md5 = recorded.ledger["stages"][stage]["deps"][path]
        if given.get(name, {}).get("dvc_md5") != md5:
            yield f"{where}: input {name} has MD5 {given.get(name, {}).get('dvc_md5')}, the ledger's is {md5}"


def _version_findings(client: MlflowClient, recorded: RecordedRound) -> Iterator[str]:
    place = recorded.ledger["mlflow"]
    version = client.get_model_version(place["model_name"], str(place["model_version"]))
    yield from _tag_findings(f"MLflow version {place['model_version']}", recorded, version.tags)


def _artifact_findings(recorded: RecordedRound) -> Iterator[str]:
    place = recorded.ledger["mlflow"]
    with tempfile.TemporaryDirectory() as folder:
        if recorded.ledger["format"] > 1:
            yield from _served_teacher(recorded, Path(folder))
        kept = {f"{Path(path).parent.name}/{Path(path).name}".lstrip("/"): path for path in ARTIFACTS}
        for artifact, path in kept.items():
            local = download_artifacts(run_id=place["run_id"], artifact_path=artifact, dst_path=folder)
            expected = _expected_md5(recorded, path)
            if expected is not None and md5_of(Path(local)) != expected:
                yield f"MLflow run {recorded.name}: artifact {artifact} is altered, it is not {path} of the round"
        ledger = f"ledger/{recorded.name}.json"
        local = download_artifacts(run_id=place["run_id"], artifact_path=ledger, dst_path=folder)
        if files.sha256_file(Path(local)) != ledger_sha256(recorded.workspace, recorded.number):
            yield f"MLflow run {recorded.name}: artifact {ledger} is not the workspace's ledger"


def _served_teacher(recorded: RecordedRound, folder: Path) -> Iterator[str]:
    place = recorded.ledger["mlflow"]
    uri = f"models:/{place['model_name']}/{place['model_version']}"
    local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder / "model")))
    digests = {files.sha256_file(path) for path in local.rglob("teacher.pth")}
    expected = recorded.ledger["teacher"]["sha256"]
    if digests != {expected}:
        yield f"MLflow version {place['model_version']}: its teacher.pth is not the one of {recorded.name}"


def _expected_md5(recorded: RecordedRound, path: str) -> str | None:
    """MD5 of an artifact's source, at the round."""
    try:
        if path == "params.yaml":  # no stage's output, and in git
            return hashlib.md5(recorded.blob(path), usedforsecurity=False).hexdigest()
        return recorded.digest(path)
    except MissingBytesError:
        return None


def _aliases(audited: Audited, client: MlflowClient) -> list[str]:
    ledgers = {number: recorded.ledger for number, recorded in audited.rounds.items()}
    champion = reigning(audited.workspace, ledgers)
    place = audited.newest.ledger["mlflow"]
    found = []
    for alias, expected in ((CHAMPION, champion.version if champion else None), (CANDIDATE, place["model_version"])):
        current = aliased_version(client, place["model_name"], alias)
        actual = None if current is None else int(current.version)
        if actual != expected:
            found.append(f"MLflow alias {alias} names version {actual}, promotions.jsonl and ledgers say {expected}")
    return found
