"""Write the ledger of a round: digests of its inputs and outputs, its labels, models, environment and times."""

import importlib.metadata
import platform
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tasks
from flows.annotation.batches import MANIFEST
from flows.workspace import git
from flows.workspace.dvc import locked_stages, packaged_file, recorded_md5s
from flows.workspace.rounds import (
    LEDGER_FORMAT,
    MlflowRef,
    ledger_sha256,
    read_history_entry,
    read_ledger,
    round_fingerprint,
    stage_seconds,
)
from tasks.data.label_store import read_batch
from tasks.data.paths import STAGES, Workspace
from tasks.params import Params
from tasks.runtime.errors import UserError
from tasks.storage import files

_SNAPSHOT_FILE = re.compile(r"batch-(\d{4,})\.parquet")
_METADATA_FIELD = re.compile(r"^(Name|Version): *(.+?)\s*$", re.MULTILINE)
_PACKAGES = ("flows", "tasks", "detectron_ext")


def write_ledger(
    workspace: Workspace, params: Params, round_number: int, git_revision: str, mlflow_ref: MlflowRef
) -> None:
    """Write the ledger of a round.

    A ledger of the same derivation and the same MLflow run is kept as it is, with its times.

    Args:
        workspace: a derived round.
        params: its parameters.
        round_number: number of the round.
        git_revision: the commit that holds the derivation.
        mlflow_ref: the run and the model version of the round.
    """
    path = workspace.ledger(round_number)
    fingerprint = round_fingerprint(workspace)
    mlflow_entry = asdict(mlflow_ref)
    if path.is_file():
        existing = files.read_json(path)
        if existing["derivation_sha256"] == fingerprint and existing["mlflow"] == mlflow_entry:
            return
    locked = locked_stages(workspace)
    files.write_json(
        path,
        {
            "format": LEDGER_FORMAT,
            "round": round_number,
            "tag": git.round_tag(round_number),
            "campaign": git.campaign_id(workspace.root),
            "previous_ledger_sha256": ledger_sha256(workspace, round_number - 1) if round_number else None,
            "git_revision": git_revision,
            **_digests(workspace, round_number),
            "labels": _label_batches(workspace, round_number),
            "detections_at_selection_sha256": _selection_snapshot_digests(workspace),
            "teacher": _teacher(workspace, params.train.init_from),
            "selection_model": _selection_model(workspace, round_number),
            "derivation_sha256": fingerprint,
            "stages": {stage: stage_entry(locked[stage]) for stage in STAGES if stage in locked},
            "mlflow": mlflow_entry,
            "environment": collect_environment(workspace),
            "metrics": read_history_entry(workspace, round_number),
            "times": _times(workspace, round_number),
        },
    )


def stage_entry(locked: Mapping[str, Any]) -> dict[str, Any]:
    """Summarize a stage's entry of dvc.lock: MD5 of its inputs and outputs, SHA-256 of the parameter values it read."""
    return {
        "deps": recorded_md5s(locked, "deps"),
        "outs": recorded_md5s(locked, "outs"),
        "params_sha256": files.sha256_json(locked.get("params", {})),
    }


def _digests(workspace: Workspace, round_number: int) -> dict[str, Any]:
    return {
        "labels_sha256": files.sha256_file(workspace.label_batch(round_number)),
        "selection_sha256": files.sha256_file(workspace.derived("select") / "selection.parquet"),
        "manifest_sha256": files.sha256_file(workspace.derived("handoff") / MANIFEST),
        "params_sha256": files.sha256_file(workspace.params),
        "code": files.read_json(workspace.code_versions),
    }


def _label_batches(workspace: Workspace, round_number: int) -> list[dict[str, Any]]:
    """Describe every batch the round learned from: its digest, and the number of annotations by annotator."""
    batches = []
    for number in range(round_number + 1):
        path = workspace.label_batch(number)
        batch = read_batch(path)
        annotators = Counter(label.annotator for label in (*batch.images, *batch.other_annotations))
        batches.append(
            {
                "batch": number,
                "sha256": files.sha256_file(path),
                "provider": batch.provider,
                "collected_at": batch.collected_at,
                "images": len(batch.images),
                "checks": sum(label.checks_batch is not None for label in batch.images),
                "annotators": dict(sorted(annotators.items())),
            }
        )
    return batches


def _selection_snapshot_digests(workspace: Workspace) -> dict[str, str]:
    """SHA-256 of the detections kept from selection time, by number of the batch whose labels have come back."""
    found = {
        match[1]: path
        for path in workspace.detections_at_selection.glob("*")
        if (match := _SNAPSHOT_FILE.fullmatch(path.name))
    }
    return {str(int(number)): files.sha256_file(found[number]) for number in sorted(found, key=int)}


def _teacher(workspace: Workspace, init_from: str) -> dict[str, Any]:
    """Digests of the round's teacher, and of the teacher its training started from."""
    previous_teacher = workspace.warm_start / "teacher.pth"
    started = init_from == "previous_round" and previous_teacher.is_file()
    return {
        "sha256": files.sha256_file(workspace.derived("train") / "teacher.pth"),
        "init_from": init_from,
        "started_from_sha256": files.sha256_file(previous_teacher) if started else None,
    }


def _selection_model(workspace: Workspace, round_number: int) -> dict[str, Any] | None:
    """The teacher of the round before, which selected the images of batch ``round_number``; None for the seed.

    Its file is kept as the warm start when labels are collected; without it, the digest is that in its round's ledger.
    """
    if not round_number:
        return None
    previous_ledger = read_ledger(workspace, round_number - 1)
    kept_file = workspace.warm_start / "teacher.pth"
    return {
        "round": previous_ledger["round"],
        "model_version": previous_ledger["mlflow"]["model_version"],
        "sha256": files.sha256_file(kept_file) if kept_file.is_file() else previous_ledger["teacher"]["sha256"],
    }


def _times(workspace: Workspace, round_number: int) -> dict[str, Any]:
    seconds = stage_seconds(workspace, round_number)
    return {
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage_seconds": seconds,
        "total_stage_seconds": round(sum(seconds.values()), 3),
    }


def collect_environment(workspace: Workspace) -> dict[str, Any]:
    """Collect everything besides labels and parameters that may change the result of a round, for its ledger."""
    return {
        "gleaner": gleaner_version(),
        "python": platform.python_version(),
        "packages_sha256": packages_sha256(),
        "requirements_lock_sha256": _requirements_lock_sha256(),
        "host": platform.node(),
        "system": platform.platform(),
        "processor": cpu_model(),
        "device": _training_device(workspace),
        "training_processes": _training_processes(workspace),
    }


def gleaner_version() -> dict[str, Any]:
    """Return Gleaner's version; of a checkout also its commit, and whether its packages have uncommitted changes.

    The digests of each stage's source code are elsewhere in the ledger, under ``code``.
    """
    root = Path(tasks.__file__).parents[1]
    try:
        version: str | None = importlib.metadata.version("gleaner")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        version = None
    if not (root / ".git").exists():
        return {"version": version, "git_revision": None, "dirty": None}
    try:
        changed = git.run_git(root, "status", "--porcelain", "--", *_PACKAGES)
        return {"version": version, "git_revision": git.head_commit(root), "dirty": bool(changed)}
    except UserError:  # not a repository of its own, or one that git refuses to read
        return {"version": version, "git_revision": None, "dirty": None}


def packages_sha256() -> str:
    """Return the SHA-256 of names and versions of all installed packages."""
    installed = {_name_and_version(distribution) for distribution in importlib.metadata.distributions()}
    return files.sha256_json(sorted(installed))


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Read the header of a package's metadata; the standard library parses the description too, ten times as slow."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    header = dict(reversed(_METADATA_FIELD.findall(text.partition("\n\n")[0])))  # the first of each counts
    return header.get("Name", "").lower().replace("_", "-"), header.get("Version", "")


def cpu_model() -> str:
    """Return the model of the CPU; another one may round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _requirements_lock_sha256() -> str | None:
    """SHA-256 of the lock file that was packaged with Gleaner; None where an installation has none."""
    try:
        return files.sha256_file(packaged_file("requirements.lock"))
    except UserError:
        return None


def _training_processes(workspace: Workspace) -> int | None:
    """Processes that trained as one (world size): sums are rounded in another order with another number."""
    summary = workspace.derived("train") / "summary.json"
    return files.read_json(summary).get("processes") if summary.is_file() else None


def _training_device(workspace: Workspace) -> str | None:
    """Device of the train stage, from its timing file; None where its result came from a cache."""
    timing = workspace.timing("train")
    return files.read_json(timing).get("device") if timing.is_file() else None
