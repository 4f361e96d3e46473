"""What a ledger says about where a round came from: labels and who gave them, frozen detections, the teacher."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tasks import files
from tasks.label_store import read_batch
from tasks.params import load_params
from tasks.paths import Workspace

_SNAPSHOT_FILE = re.compile(r"batch-(\d{4,})\.parquet")


def label_batches(workspace: Workspace, round_number: int) -> list[dict[str, Any]]:
    """Every batch a round learned from: its digest, and how many answers each annotator gave."""
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
                "annotators": dict(sorted(annotators.items())),
            }
        )
    return batches


def selection_snapshot_digests(workspace: Workspace) -> dict[str, str]:
    """SHA-256 of the detections frozen with each delivery whose labels have come back, by its number."""
    found = {
        match[1]: path
        for path in workspace.detections_at_selection.glob("*")
        if (match := _SNAPSHOT_FILE.fullmatch(path.name))
    }
    return {str(int(number)): files.sha256_file(found[number]) for number in sorted(found, key=int)}


def teacher_record(workspace: Workspace) -> dict[str, Any]:
    """The round's model, and the one its training started from."""
    previous_teacher = workspace.warm_start / "teacher.pth"
    init_from = load_params(workspace.params).train.init_from
    started = init_from == "previous_round" and previous_teacher.is_file()
    return {
        "sha256": files.sha256_file(workspace.derived("train") / "teacher.pth"),
        "init_from": init_from,
        "started_from_sha256": files.sha256_file(previous_teacher) if started else None,
    }


def selection_model_record(workspace: Workspace, previous_ledger: Mapping[str, Any]) -> dict[str, Any]:
    """The model of the round before, as its ledger has it; its file came along with the labels."""
    previous_teacher = workspace.warm_start / "teacher.pth"
    digest = (
        files.sha256_file(previous_teacher)
        if previous_teacher.is_file()
        else previous_ledger.get("teacher", {}).get("sha256")
    )
    return {
        "round": previous_ledger["round"],
        "model_version": previous_ledger["mlflow"]["model_version"],
        "sha256": digest,
    }


def params_sha256(locked: Mapping[str, Any]) -> str:
    """Digest of the parameter values a stage read, from its entry in dvc.lock."""
    return files.sha256_json(locked.get("params", {}))
