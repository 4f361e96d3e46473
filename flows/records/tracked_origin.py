"""Where a round came from, for whoever sees MLflow alone: tags and a page of words on the run and the version.

Everything here is taken from the ledger, whose digest is among the tags: the two refer to each other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from flows import vcs
from flows.records.ledger import MlflowRef
from tasks import files

_NOTE_TAG = "mlflow.note.content"  # what MLflow's pages show as the description
_DATA_SETS = {
    "Labels": "data/labels",
    "Pool": "data/index.parquet",
    "Validation set": "data/val.parquet",
    "Calibration set": "data/calibration.parquet",
}
LEDGER_SHA256, TEACHER_SHA256 = "gleaner.ledger_sha256", "gleaner.teacher_sha256"


def set_provenance_tags(client: MlflowClient, mlflow_ref: MlflowRef, ledger_path: Path) -> None:
    """Put a copy of the ledger, tags and words on the round's run and on its model version."""
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
    """Digests and names by which a round is found in git and DVC."""
    code = ledger["environment"]["gleaner"]
    deps = _input_md5s(ledger)
    return {
        "gleaner.tag": ledger["tag"],
        "gleaner.round": str(ledger["round"]),
        "gleaner.parent_round": _parent_tag(ledger),
        "gleaner.git_revision": ledger["git_revision"],
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
    """MD5 of what the stages read, by path."""
    return {path: md5 for stage in ledger["stages"].values() for path, md5 in stage["deps"].items()}


def _parent_tag(ledger: Mapping[str, Any]) -> str:
    return vcs.round_tag(ledger["round"] - 1) if ledger["round"] else "none"


def _report_url(client: MlflowClient, mlflow_ref: MlflowRef) -> str:
    """Where MLflow's own pages show the report; relative, so that it holds under whatever address they have."""
    experiment = client.get_run(mlflow_ref.run_id).info.experiment_id
    return f"#/experiments/{experiment}/runs/{mlflow_ref.run_id}/artifacts/report/report.html"


def _description(ledger: Mapping[str, Any], tags: Mapping[str, str], report_url: str) -> str:
    """Markdown. Lists show its first line alone, so that one says what matters most."""
    metrics, deps = ledger["metrics"], _input_md5s(ledger)
    annotators: dict[str, int] = {}
    for batch in ledger["labels"]:
        for name, count in batch["annotators"].items():
            annotators[name] = annotators.get(name, 0) + count
    rows = {
        "Labels": f"{metrics['labels']} images, the calibration set included, and {metrics['boxes']} boxes",
        "Annotators": ", ".join(f"{name} ({count})" for name, count in sorted(annotators.items())),
        "Teacher mAP": f"{metrics['teacher']['mAP']:.2f}",
        "Parent round": tags["gleaner.parent_round"],
        "Code revision": f"{tags['gleaner.code_revision']}" + (" with local changes" if _is_dirty(ledger) else ""),
        "Campaign revision": f"{ledger['git_revision']} (tag {ledger['tag']})",
        **{f"{title}, MD5": deps[path] for title, path in _DATA_SETS.items()},
        "Ledger, SHA-256": tags[LEDGER_SHA256],
        "Teacher, SHA-256": tags[TEACHER_SHA256],
        "Report": f"[report.html]({report_url}), an artifact of the run",
    }
    headline = f"{ledger['tag']}: {metrics['labels']} labels, teacher mAP {metrics['teacher']['mAP']:.1f}. "
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    lineage = f"gleaner lineage {ledger['mlflow']['model_name']}/{ledger['mlflow']['model_version']}"
    footer = f"Where it came from: `{lineage}`. Proof: `gleaner audit`.\n"
    return f"{headline}[Report]({report_url})\n\n| {ledger['tag']} | |\n| --- | --- |\n{table}\n{footer}"


def _is_dirty(ledger: Mapping[str, Any]) -> bool:
    return bool(ledger["environment"]["gleaner"]["dirty"])
