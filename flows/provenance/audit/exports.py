"""Audit of the exports: their records against the ledgers, and what MLflow holds against the records."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from flows.provenance.audit import AuditScope, Check, make_check
from flows.runtime.process_env import tracking_uri
from flows.tracking.mlflow_run import EXPORT_KEY_TAG, PARENT_MODEL_TAG, TEACHER_SHA256, silence_mlflow, use_tracking_uri
from flows.workspace.export_log import ExportRecord, read_exports
from flows.workspace.promotion_log import model_record
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import pluralize
from tasks.storage import files


def export_checks(scope: AuditScope) -> Iterator[Check]:
    """Check the exports of the audited rounds; there is nothing to check where nothing was exported."""
    try:
        records = [record for record in read_exports(scope.workspace) if record.model.round in scope.rounds]
    except UserError as error:
        yield make_check("exports", "the log can be read", "exports.jsonl", [str(error)])
        return
    if not records:
        return
    counted = pluralize(len(records), "export")
    found = [finding for record in records for finding in _record_findings(scope, record)]
    yield make_check("exports", "each names its round's teacher", counted, found)
    if "MLFLOW_TRACKING_URI" not in os.environ and not (scope.workspace.root / "mlflow.db").is_file():
        reason = "there is no mlflow.db in the workspace, and MLFLOW_TRACKING_URI is not set"
        yield Check("exports", "stored files in MLflow", "nothing", skip_reason=reason)
        return
    silence_mlflow()
    with use_tracking_uri(tracking_uri(scope.workspace.root)):
        client = MlflowClient()
        found = [finding for record in records for finding in _stored_findings(client, record)]
    yield make_check("exports", "stored files in MLflow", counted, found)


def _name(record: ExportRecord) -> str:
    return f"export {record.name}/{record.version}"


def _record_findings(scope: AuditScope, record: ExportRecord) -> Iterator[str]:
    expected = model_record(scope.rounds[record.model.round].ledger)
    if record.model != expected:
        yield f"{_name(record)}: model is {record.model}, expected {expected} of the ledger"


def _stored_findings(client: MlflowClient, record: ExportRecord) -> Iterator[str]:
    try:
        version = client.get_model_version(record.name, str(record.version))
        expected = {EXPORT_KEY_TAG: record.key, TEACHER_SHA256: record.model.sha256}
        for tag, value in expected.items():
            if version.tags.get(tag) != value:
                yield f"{_name(record)} in MLflow: tag {tag} is {version.tags.get(tag)!r}, expected {value!r}"
        parent = version.tags.get(PARENT_MODEL_TAG, "")
        if parent.rpartition("/")[2] != str(record.model.version):
            expected_parent = f"expected version {record.model.version}"
            yield f"{_name(record)} in MLflow: tag {PARENT_MODEL_TAG} is {parent!r}, {expected_parent}"
        with tempfile.TemporaryDirectory() as folder:
            uri = f"models:/{record.name}/{record.version}"
            stored = Path(download_artifacts(artifact_uri=uri, dst_path=folder))
            digests = {path.name: files.sha256_file(path) for path in stored.rglob("artifacts/*/*") if path.is_file()}
    except MlflowException as error:
        yield f"{_name(record)} in MLflow: the answer is an error ({str(error).splitlines()[0]})"
        return
    for name, sha256 in record.sha256_by_file.items():
        if digests.get(name) != sha256:
            yield f"{_name(record)} in MLflow: SHA-256 of {name} is {digests.get(name, 'missing')}, expected {sha256}"
