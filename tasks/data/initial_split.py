"""The source data of a new campaign: images, pool index, validation and calibration sets, seed batch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.data.annotations import write_annotated_table
from tasks.data.box_rules import BoxRules
from tasks.data.dataset_import import ImportedDataset, import_dataset
from tasks.data.dataset_source import DatasetSource
from tasks.data.image_record import NO_BOXES, BoxFate, ImageRecord
from tasks.data.import_report import Account, ImportReport, Reason
from tasks.data.paths import Workspace
from tasks.data.schemas import (
    ANNOTATED,
    DETECTIONS_AT_SELECTION,
    FILE_NAMES,
    INDEX,
    PREVIOUS_UNCERTAINTY,
    LabelBatch,
    LabeledImage,
)
from tasks.data.seed_draw import SeedSize, draw_seed
from tasks.runtime.errors import UserError
from tasks.runtime.progress import track
from tasks.storage import files

_NO_BATCH = -1


@dataclass(frozen=True)
class CampaignPlan:
    """How a source becomes a campaign."""

    seed: int
    seed_images: SeedSize | None
    """Images of the seed batch, drawn at random: their number, or the rule they are drawn by. None: all annotated ones
    that are left."""
    calibration_images: int
    """Images whose labels are known and never trained on (docs/method.md#dwa)."""
    val_frac: float
    """Share of the annotated images drawn for validation, in (0, 1), unless the source brings its own."""
    oracle: bool
    """Keep the annotations that are left for the simulated annotator; otherwise they are not used."""
    imported_at: str
    """ISO 8601 with time zone; the time the seed labels carry."""
    max_pixels: int
    """Images with more pixels are set aside undecoded."""
    box_rules: BoxRules = field(default_factory=BoxRules)
    """Limits of boxes, the same as for labels that come back."""


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

    format: str
    """Of the annotations."""
    classes: tuple[str, ...]
    counts: dict[str, Any]
    rejected: tuple[dict[str, str], ...]
    """Not used because of a problem: ``item``, ``reason`` and ``code`` of each."""
    left_out: tuple[dict[str, str], ...]
    """Not used, though nothing is wrong with it."""
    notes: tuple[dict[str, str], ...]
    """Used, after something was corrected or decided."""
    refused_boxes: tuple[dict[str, str], ...]
    accounts: tuple[Account, ...]
    """Files, listed images and boxes, each with the parts it is the sum of."""
    found: tuple[str, ...] = ()
    """What was found and which split becomes what, a line each."""
    pool_folder: str | None = ""
    """Folder of the source that holds the pool and nothing else; None: there is none."""


def examine_source(source: DatasetSource, plan: CampaignPlan) -> CampaignData:
    """Read a source and split it as ``create_campaign_data`` does, without writing anything.

    Raises:
        UserError: the source is unusable as a whole, or too small.
    """
    return _examine(source, plan)[1]


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
    splits, data = _examine(source, plan)
    _copy_images((*splits.pool, *splits.val), workspace)
    _write_sets(splits, plan, data.classes, workspace)
    _write_initial_warm_start(workspace)
    files.write_json(workspace.import_report, {"seed": plan.seed, **report_document(data)})
    # Last: its presence says that the rest is whole.
    files.write_table(workspace.index, _index_table(splits.pool, data.pool_folder or ""))
    return data


def _examine(source: DatasetSource, plan: CampaignPlan) -> tuple[_Splits, CampaignData]:
    dataset = import_dataset(source, max_pixels=plan.max_pixels, rules=plan.box_rules)
    classes = _order_classes(dataset, source)
    splits = _split(dataset, plan, source)
    _check_boxes(splits, source)
    _note_missing_classes(splits, classes, dataset.report)
    return splits, _summary(dataset, splits, plan, classes)


def report_document(data: CampaignData) -> dict[str, Any]:
    """Return everything that is known of an import, as ``data/import_report.json`` has it."""
    return {
        "format": data.format,
        "classes": list(data.classes),
        "counts": data.counts,
        "accounts": {account.what: account.as_json() for account in data.accounts},
        "set_aside": list(data.rejected),
        "left_out": list(data.left_out),
        "refused_boxes": list(data.refused_boxes),
        "notes": list(data.notes),
    }


def _order_classes(dataset: ImportedDataset, source: DatasetSource) -> tuple[str, ...]:
    """The user's classes in their order, then the others, the most frequent first."""
    counts = _boxes_per_class((*dataset.pool, *(dataset.val or ())))
    if not counts:
        problem = "boxes in all annotations are 0, expected at least 1"
        raise UserError(source.where, problem, "Annotate some images first: training starts from labels.")
    others = [name for name in dataset.class_names if name not in source.classes]
    return (*dict.fromkeys(source.classes), *sorted(others, key=lambda name: (-counts[name], name)))


def _boxes_per_class(records: Sequence[ImageRecord]) -> Counter[str]:
    counts: Counter[str] = Counter()
    by_document: dict[int, tuple[tuple[str, ...], list[Any]]] = {}
    for record in records:
        if record.boxes:
            columns = record.boxes.columns
            by_document.setdefault(id(columns), (columns.categories, []))[1].append(record.boxes.class_numbers())
    for names, numbers in by_document.values():
        totals = np.bincount(np.concatenate(numbers), minlength=len(names)).tolist()
        counts.update({name: total for name, total in zip(names, totals, strict=True) if total})
    return counts


def _split(dataset: ImportedDataset, plan: CampaignPlan, source: DatasetSource) -> _Splits:
    """Draw validation, calibration and seed images, in this order, from one random permutation."""
    annotated = [record for record in dataset.pool if record.boxes is not None]
    shuffled = [annotated[i] for i in np.random.default_rng(plan.seed).permutation(len(annotated))]
    val = dataset.val
    if val is None:
        num_val = max(1, round(plan.val_frac * len(shuffled)))
        val, shuffled = tuple(shuffled[:num_val]), shuffled[num_val:]
    rest = shuffled[plan.calibration_images :]
    size = len(rest) if plan.seed_images is None else plan.seed_images
    if not isinstance(size, int):
        drawn = draw_seed(rest, size, source.where)
        in_seed = {record.image_id for record in drawn}
        rest = [*drawn, *(record for record in rest if record.image_id not in in_seed)]
        shuffled = [*shuffled[: plan.calibration_images], *rest]
    num_seed = size if isinstance(size, int) else len(drawn)
    num_required = max(num_seed, 1) + plan.calibration_images
    if num_required > len(shuffled):
        problem = f"annotated images besides validation are {len(shuffled)}, expected at least {num_required}"
        parts = f"{max(num_seed, 1)} for the seed set and {plan.calibration_images} for calibration"
        raise UserError(source.where, problem, f"{parts} were asked for: ask for fewer, or annotate more.")
    calibration, seed = shuffled[: plan.calibration_images], shuffled[plan.calibration_images : num_required]
    in_val = {record.image_id for record in val}
    pool = tuple(record for record in dataset.pool if record.image_id not in in_val)
    if len(pool) == num_required:
        problem = f"images left to choose from are 0 of {len(pool)}, expected at least 1"
        raise UserError(source.where, problem, "Give fewer seed labels (--seed-labels), or add images.")
    return _Splits(
        _sort_by_id(val), _sort_by_id(calibration), _sort_by_id(seed), _sort_by_id(shuffled[num_required:]), pool
    )


def _sort_by_id(records: Sequence[ImageRecord]) -> tuple[ImageRecord, ...]:
    return tuple(sorted(records, key=lambda record: record.image_id))


def _check_boxes(splits: _Splits, source: DatasetSource) -> None:
    for split, records in (("the seed set", splits.seed), ("the validation set", splits.val)):
        if not any(record.boxes for record in records):
            problem = f"boxes on the {len(records)} images of {split} are 0, expected at least 1"
            raise UserError(source.where, problem, "Take more images for it, or another seed.")


def _note_missing_classes(splits: _Splits, classes: Sequence[str], report: ImportReport) -> None:
    for split, records in (("seed set", splits.seed), ("validation set", splits.val)):
        present = _boxes_per_class(records)
        for name in classes:
            if name not in present:
                report.note(Reason.CLASS_WITHOUT_BOX, split, f"class {name!r} has no box in it")


def _uri(record: ImageRecord) -> str:
    return record.uri or f"data/images/{record.image_id}{record.metadata.suffix}"


def _copy_images(records: Sequence[ImageRecord], workspace: Workspace) -> None:
    workspace.images.mkdir(parents=True, exist_ok=True)
    local = [record for record in records if record.uri is None]
    if not local:  # DVC forgets empty folders
        files.write_bytes(workspace.images / "README", b"The images of this campaign are objects: see index.parquet.\n")
    for record in track(local, "copying images", total=len(local)):
        target = workspace.root / _uri(record)
        record.listing.copy(record.file_name, target)
        if files.sha256_file(target) != record.metadata.sha256:
            raise UserError(record.file_name, "the file changed while it was read, expected it to stay", "Start again.")


def _write_sets(splits: _Splits, plan: CampaignPlan, classes: Sequence[str], workspace: Workspace) -> None:
    _write_annotated(workspace.val, splits.val, classes)
    names = [{"image_id": record.image_id, "file_name": record.file_name} for record in splits.val]
    files.write_table(workspace.val_names, pa.Table.from_pylist(names, schema=FILE_NAMES))
    _write_annotated(workspace.calibration, splits.calibration, classes)
    if plan.oracle:
        _write_annotated(workspace.oracle, splits.remaining, classes)
    batch = LabelBatch(
        batch=0,
        provider="imported",
        collected_at=plan.imported_at,
        images=tuple(_seed_label(record, plan.imported_at) for record in splits.seed),
    )
    files.write_json(workspace.label_batch(0), batch.model_dump(mode="json"))


def _write_annotated(path: Path, records: Sequence[ImageRecord], classes: Sequence[str]) -> None:
    """Write images with their boxes as columns: a million boxes never become objects."""
    index_of = {name: index for index, name in enumerate(classes)}
    corners, class_ids, is_crowd = [], [], []
    for record in records:
        boxes = NO_BOXES if record.boxes is None else record.boxes
        numbers = np.array([index_of.get(name, -1) for name in boxes.columns.categories] or [0], dtype=np.int32)
        xyxy_N4, number_N, is_crowd_N = boxes.with_crowd_regions()
        corners.append(xyxy_N4.astype(np.float32).ravel())
        class_ids.append(numbers[number_N])
        is_crowd.append(is_crowd_N)
    table = pa.table(
        {
            "image_id": [record.image_id for record in records],
            "uri": [_uri(record) for record in records],
            "width_px": [record.metadata.width_px for record in records],
            "height_px": [record.metadata.height_px for record in records],
            "boxes_xyxy": _lists(corners, np.float32),
            "class_ids": _lists(class_ids, np.int32),
            "is_crowd": _lists(is_crowd, np.bool_),
            "batch": [_NO_BATCH] * len(records),
        },
        schema=ANNOTATED,
    )
    write_annotated_table(path, table, classes)


def _lists(rows: Sequence[Any], kind: Any) -> pa.Array:
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    values = np.concatenate(rows) if rows else np.empty(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(kind)))


def _seed_label(record: ImageRecord, imported_at: str) -> LabeledImage:
    boxes = NO_BOXES if record.boxes is None else record.boxes
    return LabeledImage(
        image_id=record.image_id,
        status="empty" if boxes.is_empty else "labeled",
        boxes=tuple(boxes),
        crowd_regions=boxes.crowd_regions(),
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


def _index_table(records: Sequence[ImageRecord], pool_folder: str) -> pa.Table:
    """The pool; file names are relative to the folder in which ``gleaner pool sync`` looks for new images."""
    rows = [
        {
            "image_id": record.image_id,
            "uri": _uri(record),
            "size_bytes": record.metadata.size_bytes,
            "sha256": record.metadata.sha256,
            "file_name": record.file_name.removeprefix(pool_folder),
        }
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=INDEX)


def _summary(dataset: ImportedDataset, splits: _Splits, plan: CampaignPlan, classes: Sequence[str]) -> CampaignData:
    report = dataset.report
    annotated = (*splits.val, *splits.calibration, *splits.seed, *splits.remaining)
    boxes = _boxes_per_class(annotated)
    numbers = {account.what: account.parts for account in dataset.accounts}
    counts = {
        "pool_images": len(splits.pool),
        "annotated_images": len(annotated),
        "unannotated_images": sum(record.boxes is None for record in splits.pool),
        "empty_images": sum(record.boxes is None or record.boxes.is_empty for record in annotated),
        "boxes": boxes.total(),
        "crowd_regions": numbers["boxes read"][BoxFate.CROWD.words],
        "boxes_per_class": {name: boxes[name] for name in classes},
        "seed_images": len(splits.seed),
        "seed_boxes": sum(len(record.boxes or ()) for record in splits.seed),
        "calibration_images": len(splits.calibration),
        "val_images": len(splits.val),
        "oracle_images": len(splits.remaining) if plan.oracle else 0,
        "unused_annotations": 0 if plan.oracle else len(splits.remaining),
        "set_aside": len(report.rejected),
        "left_out": len(report.left_out),
        "duplicates_collapsed": dataset.duplicates_collapsed,
        "val_duplicates_dropped": dataset.val_duplicates_dropped,
        "clipped_boxes": numbers["boxes read"]["clipped"],
    }
    if plan.seed_images is not None and not isinstance(plan.seed_images, int):
        counts["seed_rule"] = str(plan.seed_images)
    rejected, left_out, notes = (
        tuple(sorted((entry.as_json() for entry in entries), key=lambda e: (e["item"], e["reason"])))
        for entries in (report.rejected, report.left_out, report.notes)
    )
    refused = tuple(
        {"item": item, "reason": reason, "code": f"box_{fate.name.lower()}"}
        for fate, item, reason in report.refused_boxes
    )
    accounts = _with_drawn_validation(dataset, splits)
    return CampaignData(
        dataset.format,
        tuple(classes),
        counts,
        rejected,
        left_out,
        notes,
        refused,
        accounts,
        dataset.found,
        dataset.pool_folder,
    )


def _with_drawn_validation(dataset: ImportedDataset, splits: _Splits) -> tuple[Account, ...]:
    """The accounts, with validation images drawn from the pool where the source brings none."""
    first, *others = dataset.accounts
    parts = {**first.parts, "pool": len(splits.pool), "validation": len(splits.val)}
    return Account(first.what, first.total, parts, first.details), *others
