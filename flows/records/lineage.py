"""Where a model came from: labels, who gave them, which model picked the images and why, and so on to the seed.

Everything is read from ledgers, git and DVC; no server is asked.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from flows.labels.deliveries import MANIFEST
from flows.records.git_objects import blob
from flows.records.promotion_log import read_decisions, reigning
from flows.records.recorded import RecordedRound, recorded_rounds
from flows.records.registry import CANDIDATE, CHAMPION
from tasks.contracts import HandoffTask, LabelBatch, LabeledImage
from tasks.paths import Workspace

SEED = 0


def model_lineage(workspace: Workspace, round_number: int) -> dict[str, Any]:
    """The tree behind one model, as nested documents.

    Args:
        workspace: the campaign.
        round_number: whose teacher the model is.

    Returns:
        model (name, version, aliases, promotions), training (round, revisions, digests, figures) and labels: one
        entry a batch with its digest, annotators and selection. A selection holds the images with rank and reason,
        and under ``by`` the lineage of the model that picked them, down to the seed.
    """
    rounds = recorded_rounds(workspace)
    return _model(workspace, rounds, round_number)


def _model(workspace: Workspace, rounds: Mapping[int, RecordedRound], number: int) -> dict[str, Any]:
    recorded = rounds[number]
    ledger = recorded.ledger
    return {
        "model": {
            "name": ledger["mlflow"]["model_name"],
            "version": recorded.model_version,
            "aliases": _aliases(workspace, rounds, number),
            "sha256": ledger.get("teacher", {}).get("sha256"),
            "teacher_map": ledger["figures"]["teacher"]["mAP"],
            "promotions": _promotions(workspace, recorded.model_version),
        },
        "training": _training(recorded),
        "labels": _batches(workspace, rounds, number),
    }


def _training(recorded: RecordedRound) -> dict[str, Any]:
    ledger = recorded.ledger
    return {
        "round": recorded.number,
        "tag": recorded.name,
        "git_revision": ledger["git_revision"],
        "finished_at": ledger["times"]["published_at"],
        "labels": ledger["figures"]["labels"],
        "boxes": ledger["figures"]["boxes"],
        "started_from_sha256": ledger.get("teacher", {}).get("started_from_sha256"),
        "params_sha256": ledger["params_sha256"],
        "code": ledger.get("made_with", {}).get("gleaner"),
        "host": ledger.get("made_with", {}).get("host"),
        "device": ledger.get("made_with", {}).get("device"),
        "validation_md5": recorded.digest("data/val.parquet"),
        "pool_md5": recorded.digest("data/index.parquet"),
    }


def _batches(workspace: Workspace, rounds: Mapping[int, RecordedRound], number: int) -> list[dict[str, Any]]:
    """Newest first; only the newest one tells the story of the model that picked it, which tells the rest."""
    batches = []
    for batch_number in range(number, -1, -1):
        batch = read_batch_at(rounds[number], batch_number)
        entry: dict[str, Any] = {
            "batch": batch_number,
            "is_newest": batch_number == number,
            "sha256": _batch_sha256(rounds[number], batch_number),
            "provider": batch.provider,
            "collected_at": batch.collected_at,
            "annotators": annotators(batch),
            "deliveries": _deliveries(rounds[number], batch),
        }
        if batch_number == number and number > SEED and number - 1 in rounds:
            entry["selected_by"] = _model(workspace, rounds, number - 1)
        batches.append(entry)
    return batches


def read_batch_at(recorded: RecordedRound, batch: int) -> LabelBatch:
    """A label batch as a round had it."""
    return LabelBatch.model_validate_json(recorded.blob(f"data/labels/batch-{batch:04d}.json"))


def manifest_at(recorded: RecordedRound, batch: int) -> dict[str, HandoffTask]:
    """What was offered as a delivery, by image id; empty for the seed, and where git has no manifest of it."""
    content = blob(recorded.workspace.root, recorded.revision, f"deliveries/batch-{batch:04d}/{MANIFEST}")
    tasks = (HandoffTask.model_validate_json(line) for line in (content or b"").splitlines() if line)
    return {task.image_id: task for task in tasks}


def annotators(batch: LabelBatch) -> dict[str, dict[str, int]]:
    """Answers by annotator and status."""
    counted: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for label in (*batch.images, *batch.others):
        counted[label.annotator][label.status] += 1
    return {name: dict(sorted(counts.items())) for name, counts in sorted(counted.items())}


def _deliveries(recorded: RecordedRound, batch: LabelBatch) -> list[dict[str, Any]]:
    """The images of a batch by the delivery they were offered in, and why each was picked."""
    by_delivery: dict[int, list[LabeledImage]] = defaultdict(list)
    for label in batch.images:
        by_delivery[label.offered_in].append(label)
    found = []
    for delivery, labels in sorted(by_delivery.items()):
        offered = manifest_at(recorded, delivery) if delivery != SEED else {}
        images = [_picked(label, offered.get(label.image_id)) for label in labels]
        picker = {task.model_digest for task in offered.values()}
        found.append(
            {
                "delivery": delivery,
                "picked_by_sha256": sorted(picker)[0] if picker else None,
                "images": sorted(images, key=lambda image: (image["rank"] is None, image["rank"], image["image_id"])),
            }
        )
    return found


def _picked(label: LabeledImage, task: HandoffTask | None) -> dict[str, Any]:
    return {
        "image_id": label.image_id,
        "annotator": label.annotator,
        "status": label.status,
        "boxes": len(label.boxes),
        "rank": task.rank if task else None,
        "uncertainty": task.uncertainty if task else None,
        "reason": task.reason if task else "part of the seed",
    }


def _aliases(workspace: Workspace, rounds: Mapping[int, RecordedRound], number: int) -> list[str]:
    champion = reigning(workspace, {key: recorded.ledger for key, recorded in rounds.items()})
    is_champion = champion is not None and champion.round == number
    return [alias for alias, holds in ((CHAMPION, is_champion), (CANDIDATE, number == max(rounds))) if holds]


def _promotions(workspace: Workspace, version: int) -> list[dict[str, Any]]:
    return [
        {"action": made.action, "when": made.when, "who": made.who, "why": made.why}
        for made in read_decisions(workspace)
        if made.model.version == version
    ]


def _batch_sha256(recorded: RecordedRound, batch: int) -> str | None:
    if batch == recorded.number:
        return str(recorded.ledger["labels_sha256"])
    listed = {entry["batch"]: entry["sha256"] for entry in recorded.ledger.get("labels", ())}
    return listed.get(batch)


def shortened(digest: str | None) -> str:
    """Enough of a digest for the eye."""
    return digest[:12] if digest else "-"


def as_text(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
