"""Read and write the folder of a delivery; derive from it the state of every selected image, and the label supply.

``deliveries/batch-0002/`` is written under another name and renamed, so it is complete or absent. Git tracks
``delivery.json``, ``manifest.jsonl`` and ``refreshed.jsonl``. The other files, which the next round needs, are copied
to ``data/`` when labels of the batch are collected, and are then removed.

A label batch lists the images that stayed with the annotators when it was collected. Later deliveries are with them
completely. So there is one record, written at once, and a kill cannot leave two that contradict each other.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

import pyarrow.parquet as pq

from flows.annotation.providers.base import AnnotationBatch
from flows.workspace.rounds import RunResult, newest_round
from tasks.data.label_store import LabelStore, read_batch, read_labels
from tasks.data.paths import Workspace
from tasks.data.schemas import PREVIOUS_UNCERTAINTY, UNCERTAINTY, AnnotationTask
from tasks.params import Params
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import count, count_are
from tasks.storage import files

MANIFEST = "manifest.jsonl"
OPEN_TASKS = "open_tasks.jsonl"
"""Of stage handoff: the open images of earlier deliveries, ranked and pre-drawn anew."""
_REFRESHED = "refreshed.jsonl"
"""Of a delivery: tasks that took the place of those of its manifest before anybody had begun with them."""
_RECORD = "delivery.json"
_TRACKED_FILES = (_RECORD, MANIFEST, _REFRESHED)
_FOLDER_NAME = re.compile(r"batch-\d{4,}")
_UNCERTAINTY = "uncertainty.parquet"
_DETECTIONS = "detections.parquet"
ImageState = Literal["labeled", "empty", "skipped", "leased", "offered", "expired"]
"""State of a selected image: annotated (by status), with the annotators, about to be delivered, or withdrawn."""


def read_annotation_batch(workspace: Workspace, batch: int) -> AnnotationBatch | None:
    """Read one delivery; None where there is none of that number."""
    folder = workspace.delivery(batch)
    if not (folder / _RECORD).is_file():
        return None
    record = files.read_json(folder / _RECORD)
    ids = {name: tuple(record.get(name, ())) for name in ("image_ids", "checked_ids")}
    return AnnotationBatch(**{**record, **ids, "folder": folder})


def all_annotation_batches(workspace: Workspace) -> list[AnnotationBatch]:
    """Read every delivery of the campaign, by batch number."""
    folders = sorted(
        folder
        for folder in (workspace.root / "deliveries").glob("batch-[0-9]*")
        if _FOLDER_NAME.fullmatch(folder.name) and folder.is_dir()  # a copy such as batch-0001.bak is no batch
    )
    found = (read_annotation_batch(workspace, int(folder.name.removeprefix("batch-"))) for folder in folders)
    return [delivery for delivery in found if delivery is not None]


def offered_annotation_batches(workspace: Workspace) -> list[AnnotationBatch]:
    """Read every delivery that the provider has, by batch number; those without images were never sent."""
    return [found for found in all_annotation_batches(workspace) if found.image_ids and found.state != "prepared"]


def read_manifest(path: Path) -> list[AnnotationTask]:
    """Read the tasks of a manifest, by rank.

    Raises:
        UserError: the file is missing or a line is not a task.
    """
    try:
        return [AnnotationTask.model_validate_json(line) for line in files.json_lines(path.read_bytes())]
    except FileNotFoundError:
        raise UserError(path, "the manifest of stage handoff is missing", "Run: dvc checkout") from None
    except ValueError as error:
        raise UserError(path, f"a line is not a task ({' '.join(str(error).split())}), expected one per line") from None


def offered_tasks(delivery: AnnotationBatch) -> list[AnnotationTask]:
    """Read the tasks of a delivery as its annotators find them: those of the manifest, some of them refreshed.

    Raises:
        UserError: the manifest is missing, or a line of either file is not a task.
    """
    manifest, refreshed = delivery.folder / MANIFEST, delivery.folder / _REFRESHED
    newer = {task.image_id: task for task in read_manifest(refreshed)} if refreshed.is_file() else {}
    return [newer.get(task.image_id, task) for task in read_manifest(manifest)]


def record_refreshed(delivery: AnnotationBatch, tasks: Sequence[AnnotationTask], round_number: int) -> None:
    """Record the tasks that were refreshed, and last that a round has refreshed its delivery."""
    path = delivery.folder / _REFRESHED
    newer = {task.image_id: task for task in (*(read_manifest(path) if path.is_file() else ()), *tasks)}
    if newer:
        files.write_bytes(path, "".join(f"{task.model_dump_json()}\n" for task in newer.values()).encode())
    _write_record(delivery.folder, replace(delivery, refreshed_round=round_number))


def prepare_annotation_batch(
    workspace: Workspace, campaign: str, batch: int, tasks: Sequence[AnnotationTask], *, is_held: bool = False
) -> AnnotationBatch:
    """Write the folder of one delivery, before anything is sent.

    Args:
        workspace: its ``derived/`` is that of the round that offers the batch.
        campaign: id of the campaign, part of the delivery's key.
        batch: number of the delivery.
        tasks: those of the manifest, perhaps with honeypots among them; none where no image is offered: then the folder
            only holds the round's outputs.
        is_held: whether that is because stopping is advised.
    """
    manifest = workspace.derived("handoff") / MANIFEST
    folder = workspace.delivery(batch)
    delivery = AnnotationBatch(
        batch=batch,
        key=files.sha256_json([campaign, batch, files.sha256_file(manifest)]),
        folder=folder,
        image_ids=tuple(task.image_id for task in tasks),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        state="prepared" if tasks else "collected",
        receipt=None,
        is_held=is_held,
        checked_ids=tuple(task.image_id for task in tasks if task.checks_batch is not None or task.is_honeypot),
    )
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name, source in _batch_files(workspace).items():
        shutil.copyfile(source, staging / name)
    if not tasks or any(task.is_honeypot for task in tasks):
        lines = (json.dumps(task.model_dump(mode="json")) + "\n" for task in tasks)
        (staging / MANIFEST).write_bytes("".join(lines).encode())
    weights = files.read_table(workspace.derived("weigh") / "uncertainty.parquet", UNCERTAINTY)
    files.write_table(staging / _UNCERTAINTY, weights.select(PREVIOUS_UNCERTAINTY.names))
    _write_record(staging, delivery)
    shutil.rmtree(folder, ignore_errors=True)  # left by a crash, without its delivery.json, or held back until now
    staging.rename(folder)
    return delivery


def set_state(
    delivery: AnnotationBatch, state: Literal["delivered", "collected"], receipt: str | None
) -> AnnotationBatch:
    """Write the state of a delivery, and return the changed delivery."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    delivered_at = now if state == "delivered" else delivery.delivered_at
    updated = replace(delivery, state=state, receipt=receipt, delivered_at=delivered_at)
    _write_record(delivery.folder, updated)
    return updated


def archive_round_outputs(workspace: Workspace, delivery: AnnotationBatch) -> None:
    """Copy the outputs of the previous round from the delivery to ``data/``.

    Raises:
        UserError: a file of the delivery is missing.
    """
    targets = {name: workspace.warm_start / name for name in (*_warm_start_files(workspace), _UNCERTAINTY)}
    targets[_DETECTIONS] = workspace.detections_at_selection_batch(delivery.batch)
    for name, target in targets.items():
        source = delivery.folder / name
        if not source.is_file():
            fix = f"Copy {workspace.delivery(delivery.batch).name} from the machine that delivered it."
            raise UserError(source, "the file is missing, expected until labels of the batch are collected", fix)
        with files.atomic_write(target) as temporary:  # never in place: DVC's cache shares the file
            shutil.copyfile(source, temporary)


def remove_archived_files(delivery: AnnotationBatch) -> None:
    """Remove the files that were copied to ``data/``."""
    for path in delivery.folder.iterdir():
        if path.name not in _TRACKED_FILES and not path.is_dir():  # a folder is not ours, as .ipynb_checkpoints
            path.unlink()


def _warm_start_files(workspace: Workspace) -> dict[str, Path]:
    """Files of ``data/warm_start`` that are copies of stage outputs, by name."""
    return {
        "history.json": workspace.derived("report") / "history.json",
        "class_weights.json": workspace.derived("weigh") / "class_weights.json",
        "calibration_outcomes.parquet": workspace.derived("weigh") / "calibration_outcomes.parquet",
        "teacher.pth": workspace.derived("train") / "teacher.pth",
        "val_predictions.parquet": workspace.derived("evaluate") / "predictions.parquet",
    }


def _batch_files(workspace: Workspace) -> dict[str, Path]:
    handoff = workspace.derived("handoff")
    return {MANIFEST: handoff / MANIFEST, _DETECTIONS: handoff / _DETECTIONS, **_warm_start_files(workspace)}


def _write_record(folder: Path, delivery: AnnotationBatch) -> None:
    record = asdict(delivery)
    del record["folder"]
    files.write_json(folder / _RECORD, record)


def open_images(delivery: AnnotationBatch, store: LabelStore) -> tuple[str, ...]:
    """List the images of a delivery that are, or are about to be, with the annotators."""
    if delivery.batch > store.newest_batch:
        return delivery.image_ids
    return tuple(image_id for image_id in delivery.image_ids if store.leased.get(image_id) == delivery.batch)


def num_open(workspace: Workspace, *, only_new: bool = False) -> int:
    """Count the images that are, or are about to be, with the annotators; ``only_new``: without checks of labels."""
    store = read_labels(workspace.labels)
    pairs = ((found, image_id) for found in all_annotation_batches(workspace) for image_id in open_images(found, store))
    return sum(not only_new or image_id not in found.checked_ids for found, image_id in pairs)


def lease_expires_at(delivery: AnnotationBatch, lease_days: float) -> datetime:
    """Return the time from which unfinished images of a delivery may be withdrawn."""
    return datetime.fromisoformat(delivery.delivered_at or delivery.created_at) + timedelta(days=lease_days)


def image_states(deliveries: Collection[AnnotationBatch], store: LabelStore) -> Counter[ImageState]:
    """Count the images that were ever selected by state; every state is a key. Checks of labels select no image."""
    states: dict[str, ImageState] = {}
    for delivery in deliveries:
        open_ids = set(open_images(delivery, store))
        pending_state: ImageState = "offered" if delivery.state == "prepared" else "leased"
        states |= {image_id: pending_state if image_id in open_ids else "expired" for image_id in delivery.new_ids}
    states |= {image_id: store.current[image_id].label.status for image_id in states if image_id in store.current}
    counts: Counter[ImageState] = Counter(dict.fromkeys(get_args(ImageState), 0))
    counts.update(states.values())
    return counts


def label_supply_warning(workspace: Workspace, params: Params, result: RunResult) -> str | None:
    """Return the warning to send after a run; None: there is enough of both.

    Args:
        workspace: the campaign.
        params: limits are in section ``nightly``.
        result: outcome of the run.
    """
    if result.outcome == "pool_exhausted":
        return "The pool has no image left to label. Add images to the pool, or end the campaign."
    if result.outcome == "held":
        return result.message
    if result.outcome == "waiting_for_labels":
        return _no_labels_warning(workspace, params.nightly.alert_after_days_without_labels)
    return _pool_warning(workspace, params.nightly.alert_when_batches_left)


def _no_labels_warning(workspace: Workspace, limit_days: float) -> str | None:
    newest = read_batch(workspace.label_batch(newest_round(workspace)))
    offered = [datetime.fromisoformat(delivery.created_at) for delivery in all_annotation_batches(workspace)]
    waiting = datetime.now(UTC) - max([datetime.fromisoformat(newest.collected_at), *offered])
    if waiting < timedelta(days=limit_days):
        return None
    return f"For {count(waiting.days, 'day')} no label was finished, while images are with the annotators. Remind them."


def _pool_warning(workspace: Workspace, limit_batches: int) -> str | None:
    path = workspace.derived("assemble") / "unlabeled.parquet"
    deliveries = all_annotation_batches(workspace)
    if not deliveries or not path.is_file():
        return None
    offered = len(deliveries[-1].new_ids)
    left = pq.read_metadata(path).num_rows - num_open(workspace, only_new=True)
    if left >= limit_batches * offered:
        return None
    return f"{count_are(left, 'image')} left to label after this batch of {offered}. Add images to the pool."
