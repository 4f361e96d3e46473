"""What a ledger says about where a round came from: labels and who gave them, frozen detections, the teacher."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tasks import files
from tasks.label_store import read_batch
from tasks.params import load_params
from tasks.paths import Workspace

_FROZEN = re.compile(r"batch-(\d{4,})\.parquet")


def label_batches(workspace: Workspace, round_number: int) -> list[dict[str, Any]]:
    """Every batch a round learned from: its digest, and how many answers each annotator gave."""
    batches = []
    for number in range(round_number + 1):
        path = workspace.label_batch(number)
        batch = read_batch(path)
        annotators = Counter(label.annotator for label in (*batch.images, *batch.others))
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


def frozen_digests(workspace: Workspace) -> dict[str, str]:
    """SHA-256 of the detections frozen with each delivery whose labels have come back, by its number."""
    found = {match[1]: path for path in workspace.frozen.glob("*") if (match := _FROZEN.fullmatch(path.name))}
    return {str(int(number)): files.sha256_file(found[number]) for number in sorted(found, key=int)}


def teacher_record(workspace: Workspace) -> dict[str, Any]:
    """The round's model, and the one its training started from."""
    before = workspace.previous / "teacher.pth"
    initialisation = load_params(workspace.params).train.initialisation
    started = initialisation == "previous" and before.is_file()
    return {
        "sha256": files.sha256_file(workspace.derived("train") / "teacher.pth"),
        "initialisation": initialisation,
        "started_from_sha256": files.sha256_file(before) if started else None,
    }


def previous_model(workspace: Workspace, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The model of the round before, as its ledger has it; its file came along with the labels."""
    handed_over = workspace.previous / "teacher.pth"
    digest = files.sha256_file(handed_over) if handed_over.is_file() else earlier.get("teacher", {}).get("sha256")
    return {"round": earlier["round"], "model_version": earlier["mlflow"]["model_version"], "sha256": digest}


def params_sha256(locked: Mapping[str, Any]) -> str:
    """Digest of the parameter values a stage read, from its entry in dvc.lock."""
    return files.sha256_json(locked.get("params", {}))
