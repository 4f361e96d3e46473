"""The source data of a new campaign: images, pool index, validation and calibration sets, seed batch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.data.annotations import AnnotatedImage, write_annotated
from tasks.data.importers.dataset import DatasetSource, ImportedDataset, image_id, import_dataset
from tasks.data.importers.import_report import ImageRecord, ImportReport
from tasks.data.paths import Workspace
from tasks.data.schemas import DETECTIONS_AT_SELECTION, INDEX, PREVIOUS_UNCERTAINTY, LabelBatch, LabeledImage
from tasks.runtime.errors import UserError
from tasks.runtime.progress import track
from tasks.storage import files

_NO_BATCH = -1


@dataclass(frozen=True)
class CampaignPlan:
    """How a source becomes a campaign."""

    seed: int
    classes: tuple[str, ...] | None
    """None: all classes found, the most frequent first."""
    seed_images: int | None
    """Images of the seed batch, drawn at random; None: all annotated ones that are left."""
    calibration_images: int
    """Images whose labels are known and never trained on (METHOD section 3)."""
    val_frac: float
    """Share of the annotated images drawn for validation, in (0, 1), unless the source brings its own."""
    oracle: bool
    """Keep the annotations that are left for the simulated annotator; otherwise they are not used."""
    imported_at: str
    """ISO 8601 with time zone; the time the seed labels carry."""
    max_pixels: int
    """Images with more pixels are set aside undecoded."""


@dataclass(frozen=True)
class _Splits:
    """Records of each part, sorted by image id; ``remaining`` are annotated images of no other part."""

    val: tuple[ImageRecord, ...]
    calibration: tuple[ImageRecord, ...]
    seed: tuple[ImageRecord, ...]
    remaining: tuple[ImageRecord, ...]
    pool: tuple[ImageRecord, ...]
    """All but validation, annotated or not."""


@dataclass(frozen=True)
class CampaignData:
    """What was made; also in ``data/import_report.json``."""

    classes: tuple[str, ...]
    counts: dict[str, Any]
    rejected: tuple[dict[str, str], ...]
    notes: tuple[dict[str, str], ...]


def create_campaign_data(source: DatasetSource, plan: CampaignPlan, workspace: Workspace) -> CampaignData:
    """Write everything below ``data/`` and, if planned, ``oracle/``. Same input and seed, same bytes.

    Images are copied, never linked: DVC makes its files read-only, and through a link the user's too.

    Raises:
        UserError: the workspace has data already; the source is unusable as a whole, or too small.
    """
    if workspace.index.exists():
        raise UserError(
            workspace.index, "the campaign exists already, expected a folder without one", "Choose another."
        )
    dataset = import_dataset(source, max_pixels=plan.max_pixels)
    classes, dataset = _filter_classes(dataset, plan.classes, source)
    splits = _split(dataset, plan, source)
    _check_boxes(splits, source)
    _note_missing_classes(splits, classes, dataset.report)
    _copy_images((*splits.pool, *splits.val), workspace)
    _write_sets(splits, plan, classes, workspace)
    _write_initial_warm_start(workspace)
    data = _summary(dataset, splits, plan, classes)
    report: dict[str, Any] = {
        "layout": source.annotation_format,
        "seed": plan.seed,
        "classes": list(classes),
        "counts": data.counts,
    }
    report |= {"set_aside": list(data.rejected), "notes": list(data.notes)}
    files.write_json(workspace.import_report, report)
    files.write_table(workspace.index, _index_table(splits.pool))  # last: its presence says that the rest is whole
    return data


def _filter_classes(
    dataset: ImportedDataset, class_names: tuple[str, ...] | None, source: DatasetSource
) -> tuple[tuple[str, ...], ImportedDataset]:
    """The class list, and the records without those that carry a box of another class."""
    all_records = (*dataset.pool, *(dataset.val or ()))
    counts = Counter(box.category for record in all_records for box in record.boxes or ())
    if not counts:
        problem = "boxes in all annotations are 0, expected at least 1"
        raise UserError(source.annotations, problem, "Annotate some images first: training starts from labels.")
    if class_names is None:
        return tuple(sorted(counts, key=lambda name: (-counts[name], name))), dataset
    known = set(class_names)
    for record in all_records:
        unknown = sorted({box.category for box in record.boxes or ()} - known)
        if unknown:
            dataset.report.reject_image(
                record.file_name, f"class is {unknown[0]!r}, expected one of {list(class_names)}"
            )
    rejected_ids = {image_id(r) for r in all_records if {box.category for box in r.boxes or ()} - known}
    pool = tuple(r for r in dataset.pool if image_id(r) not in rejected_ids)
    val = None if dataset.val is None else tuple(r for r in dataset.val if image_id(r) not in rejected_ids)
    return class_names, ImportedDataset(
        pool, val, dataset.report, dataset.duplicates_collapsed, dataset.val_duplicates_dropped
    )


def _split(dataset: ImportedDataset, plan: CampaignPlan, source: DatasetSource) -> _Splits:
    """Draw validation, calibration and seed images, in this order, from one random permutation."""
    annotated = [record for record in dataset.pool if record.boxes is not None]
    shuffled = [annotated[i] for i in np.random.default_rng(plan.seed).permutation(len(annotated))]
    val = dataset.val
    if val is None:
        num_val = max(1, round(plan.val_frac * len(shuffled)))
        val, shuffled = tuple(shuffled[:num_val]), shuffled[num_val:]
    num_seed = len(shuffled) - plan.calibration_images if plan.seed_images is None else plan.seed_images
    num_required = max(num_seed, 1) + plan.calibration_images
    if num_required > len(shuffled):
        problem = f"annotated images besides validation are {len(shuffled)}, expected at least {num_required}"
        parts = f"{max(num_seed, 1)} for the seed set and {plan.calibration_images} for calibration"
        raise UserError(source.annotations, problem, f"{parts} were asked for: ask for fewer, or annotate more.")
    calibration, seed = shuffled[: plan.calibration_images], shuffled[plan.calibration_images : num_required]
    in_val = {image_id(record) for record in val}
    pool = tuple(record for record in dataset.pool if image_id(record) not in in_val)
    if len(pool) == num_required:
        problem = f"images left to choose from are 0 of {len(pool)}, expected at least 1"
        raise UserError(source.images, problem, "Give fewer seed labels (--seed-labels), or add images.")
    return _Splits(
        _sort_by_id(val), _sort_by_id(calibration), _sort_by_id(seed), _sort_by_id(shuffled[num_required:]), pool
    )


def _sort_by_id(records: Sequence[ImageRecord]) -> tuple[ImageRecord, ...]:
    return tuple(sorted(records, key=image_id))


def _check_boxes(splits: _Splits, source: DatasetSource) -> None:
    for split, records in (("the seed set", splits.seed), ("the validation set", splits.val)):
        if not any(record.boxes for record in records):
            problem = f"boxes on the {len(records)} images of {split} are 0, expected at least 1"
            raise UserError(source.annotations, problem, "Take more images for it, or another seed.")


def _note_missing_classes(splits: _Splits, classes: Sequence[str], report: ImportReport) -> None:
    for split, records in (("seed set", splits.seed), ("validation set", splits.val)):
        present = {box.category for record in records for box in record.boxes or ()}
        for name in classes:
            if name not in present:
                report.note(split, f"class {name!r} has no box in it")


def _uri(record: ImageRecord) -> str:
    if isinstance(record.path, str):
        return record.path
    return f"data/images/{image_id(record)}{record.metadata.suffix}"


def _copy_images(records: Sequence[ImageRecord], workspace: Workspace) -> None:
    workspace.images.mkdir(parents=True, exist_ok=True)
    if all(isinstance(record.path, str) for record in records):  # DVC forgets empty folders
        files.write_bytes(workspace.images / "README", b"The images of this campaign are objects: see index.parquet.\n")
    for record in track(records, "copying images", total=len(records)):
        if isinstance(record.path, str):
            continue
        target = workspace.root / _uri(record)
        target.write_bytes(record.path.read_bytes())
        if files.sha256_file(target) != record.metadata.sha256:
            raise UserError(record.path, "the file changed while it was read, expected it to stay", "Start again.")


def _write_sets(splits: _Splits, plan: CampaignPlan, classes: Sequence[str], workspace: Workspace) -> None:
    write_annotated(workspace.val, _annotated_images(splits.val), classes)
    write_annotated(workspace.calibration, _annotated_images(splits.calibration), classes)
    if plan.oracle:
        write_annotated(workspace.oracle, _annotated_images(splits.remaining), classes)
    batch = LabelBatch(
        batch=0,
        provider="imported",
        collected_at=plan.imported_at,
        images=tuple(_seed_label(record, plan.imported_at) for record in splits.seed),
    )
    files.write_json(workspace.label_batch(0), batch.model_dump(mode="json"))


def _annotated_images(records: Sequence[ImageRecord]) -> list[AnnotatedImage]:
    return [
        AnnotatedImage(
            image_id(record),
            _uri(record),
            record.metadata.width_px,
            record.metadata.height_px,
            record.boxes or (),
            _NO_BATCH,
        )
        for record in records
    ]


def _seed_label(record: ImageRecord, imported_at: str) -> LabeledImage:
    return LabeledImage(
        image_id=image_id(record),
        status="labeled" if record.boxes else "empty",
        boxes=record.boxes or (),
        annotator="imported",
        finished_at=imported_at,
        seconds_spent=None,
        offered_batch=0,
    )


def _write_initial_warm_start(workspace: Workspace) -> None:
    """What the round before hands over, when there was none."""
    files.write_table(workspace.detections_at_selection_batch(0), DETECTIONS_AT_SELECTION.empty_table())
    files.write_table(workspace.warm_start / "uncertainty.parquet", PREVIOUS_UNCERTAINTY.empty_table())
    files.write_json(workspace.warm_start / "history.json", [])
    files.write_json(workspace.warm_start / "class_weights.json", {})


def _index_table(records: Sequence[ImageRecord]) -> pa.Table:
    rows = [
        {
            "image_id": image_id(record),
            "uri": _uri(record),
            "size_bytes": record.metadata.size_bytes,
            "sha256": record.metadata.sha256,
            "file_name": record.file_name,
        }
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=INDEX)


def _summary(dataset: ImportedDataset, splits: _Splits, plan: CampaignPlan, classes: Sequence[str]) -> CampaignData:
    report = dataset.report
    annotated = (*splits.val, *splits.calibration, *splits.seed, *splits.remaining)
    boxes = Counter(box.category for record in annotated for box in record.boxes or ())
    counts = {
        "pool_images": len(splits.pool),
        "annotated_images": len(annotated),
        "unannotated_images": sum(record.boxes is None for record in splits.pool),
        "empty_images": sum(record.boxes == () for record in annotated),
        "boxes": boxes.total(),
        "boxes_per_class": {name: boxes[name] for name in classes},
        "seed_images": len(splits.seed),
        "seed_boxes": sum(len(record.boxes or ()) for record in splits.seed),
        "calibration_images": len(splits.calibration),
        "val_images": len(splits.val),
        "oracle_images": len(splits.remaining) if plan.oracle else 0,
        "unused_annotations": 0 if plan.oracle else len(splits.remaining),
        "set_aside": len(report.rejected),
        "duplicates_collapsed": dataset.duplicates_collapsed,
        "val_duplicates_dropped": dataset.val_duplicates_dropped,
        "clipped_boxes": report.clipped_boxes,
    }
    rejected, notes = (
        tuple(sorted((entry.model_dump() for entry in entries), key=lambda e: (e["item"], e["reason"])))
        for entries in (report.rejected, report.notes)
    )
    return CampaignData(tuple(classes), counts, rejected, notes)
