"""The source data of a new campaign: images, pool index, validation and calibration sets, seed batch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import files
from tasks.annotated import AnnotatedImage, write_annotated
from tasks.contracts import FROZEN, INDEX, UNCERTAINTY, LabelBatch, LabeledImage
from tasks.errors import UserError
from tasks.importers.gather import Gathered, Source, gather, image_id
from tasks.importers.records import Findings, ImageRecord
from tasks.paths import Workspace
from tasks.progress import track

_UNBATCHED = -1


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
    """Records of each part, sorted by image id; ``rest`` are annotated images of no other part."""

    val: tuple[ImageRecord, ...]
    calibration: tuple[ImageRecord, ...]
    seed: tuple[ImageRecord, ...]
    rest: tuple[ImageRecord, ...]
    pool: tuple[ImageRecord, ...]
    """All but validation, annotated or not."""


@dataclass(frozen=True)
class CampaignData:
    """What was made; also in ``data/import.json``."""

    classes: tuple[str, ...]
    counts: dict[str, Any]
    set_aside: tuple[dict[str, str], ...]
    notes: tuple[dict[str, str], ...]


def create_campaign_data(source: Source, plan: CampaignPlan, workspace: Workspace) -> CampaignData:
    """Write everything below ``data/`` and, if planned, ``oracle/``. Same input and seed, same bytes.

    Images are copied, never linked: DVC makes its files read-only, and through a link the user's too.

    Raises:
        UserError: the workspace has data already; the source is unusable as a whole, or too small.
    """
    if workspace.index.exists():
        raise UserError(
            workspace.index, "the campaign exists already, expected a folder without one", "Choose another."
        )
    gathered = gather(source, max_pixels=plan.max_pixels)
    classes, gathered = _with_classes(gathered, plan.classes, source)
    splits = _split(gathered, plan, source)
    _check_boxes(splits, source)
    _note_unseen(splits, classes, gathered.findings)
    _copy_images((*splits.pool, *splits.val), workspace)
    _write_sets(splits, plan, classes, workspace)
    _write_start(workspace)
    data = _summary(gathered, splits, plan, classes)
    report: dict[str, Any] = {
        "layout": source.layout,
        "seed": plan.seed,
        "classes": list(classes),
        "counts": data.counts,
    }
    report |= {"set_aside": list(data.set_aside), "notes": list(data.notes)}
    files.write_json(workspace.import_report, report)
    files.write_table(workspace.index, _index(splits.pool))  # last: its presence says that the rest is whole
    return data


def _with_classes(
    gathered: Gathered, given: tuple[str, ...] | None, source: Source
) -> tuple[tuple[str, ...], Gathered]:
    """The class list, and the records without those that carry a box of another class."""
    everything = (*gathered.pool, *(gathered.val or ()))
    counts = Counter(box.category for record in everything for box in record.boxes or ())
    if not counts:
        problem = "boxes in all annotations are 0, expected at least 1"
        raise UserError(source.annotations, problem, "Annotate some images first: training starts from labels.")
    if given is None:
        return tuple(sorted(counts, key=lambda name: (-counts[name], name))), gathered
    known = set(given)
    for record in everything:
        foreign = sorted({box.category for box in record.boxes or ()} - known)
        if foreign:
            gathered.findings.refuse_image(record.file_name, f"class is {foreign[0]!r}, expected one of {list(given)}")
    refused = {image_id(r) for r in everything if {box.category for box in r.boxes or ()} - known}
    pool = tuple(r for r in gathered.pool if image_id(r) not in refused)
    val = None if gathered.val is None else tuple(r for r in gathered.val if image_id(r) not in refused)
    return given, Gathered(pool, val, gathered.findings, gathered.duplicates_collapsed, gathered.val_duplicates_dropped)


def _split(gathered: Gathered, plan: CampaignPlan, source: Source) -> _Splits:
    """Draw validation, calibration and seed images, in this order, from one random permutation."""
    annotated = [record for record in gathered.pool if record.boxes is not None]
    order = [annotated[i] for i in np.random.default_rng(plan.seed).permutation(len(annotated))]
    val = gathered.val
    if val is None:
        num_val = max(1, round(plan.val_frac * len(order)))
        val, order = tuple(order[:num_val]), order[num_val:]
    num_seed = len(order) - plan.calibration_images if plan.seed_images is None else plan.seed_images
    wanted = max(num_seed, 1) + plan.calibration_images
    if wanted > len(order):
        problem = f"annotated images besides validation are {len(order)}, expected at least {wanted}"
        parts = f"{max(num_seed, 1)} for the seed set and {plan.calibration_images} for calibration"
        raise UserError(source.annotations, problem, f"{parts} were asked for: ask for fewer, or annotate more.")
    calibration, seed = order[: plan.calibration_images], order[plan.calibration_images : wanted]
    in_val = {image_id(record) for record in val}
    pool = tuple(record for record in gathered.pool if image_id(record) not in in_val)
    if len(pool) == wanted:
        problem = f"images left to choose from are 0 of {len(pool)}, expected at least 1"
        raise UserError(source.images, problem, "Give fewer seed labels (--seed-labels), or add images.")
    return _Splits(_sorted(val), _sorted(calibration), _sorted(seed), _sorted(order[wanted:]), pool)


def _sorted(records: Sequence[ImageRecord]) -> tuple[ImageRecord, ...]:
    return tuple(sorted(records, key=image_id))


def _check_boxes(splits: _Splits, source: Source) -> None:
    for what, records in (("the seed set", splits.seed), ("the validation set", splits.val)):
        if not any(record.boxes for record in records):
            problem = f"boxes on the {len(records)} images of {what} are 0, expected at least 1"
            raise UserError(source.annotations, problem, "Take more images for it, or another seed.")


def _note_unseen(splits: _Splits, classes: Sequence[str], findings: Findings) -> None:
    for where, records in (("seed set", splits.seed), ("validation set", splits.val)):
        seen = {box.category for record in records for box in record.boxes or ()}
        for name in classes:
            if name not in seen:
                findings.note(where, f"class {name!r} has no box in it")


def _uri(record: ImageRecord) -> str:
    if isinstance(record.path, str):
        return record.path
    return f"data/images/{image_id(record)}{record.facts.suffix}"


def _copy_images(records: Sequence[ImageRecord], workspace: Workspace) -> None:
    workspace.images.mkdir(parents=True, exist_ok=True)
    if all(isinstance(record.path, str) for record in records):  # DVC forgets empty folders
        files.write_bytes(workspace.images / "README", b"The images of this campaign are objects: see index.parquet.\n")
    for record in track(records, "copying images", total=len(records)):
        if isinstance(record.path, str):
            continue
        target = workspace.root / _uri(record)
        target.write_bytes(record.path.read_bytes())
        if files.sha256_file(target) != record.facts.sha256:
            raise UserError(record.path, "the file changed while it was read, expected it to stay", "Start again.")


def _write_sets(splits: _Splits, plan: CampaignPlan, classes: Sequence[str], workspace: Workspace) -> None:
    write_annotated(workspace.val, _rows(splits.val), classes)
    write_annotated(workspace.calibration, _rows(splits.calibration), classes)
    if plan.oracle:
        write_annotated(workspace.oracle, _rows(splits.rest), classes)
    batch = LabelBatch(
        batch=0,
        provider="imported",
        collected_at=plan.imported_at,
        images=tuple(_seed_label(record, plan.imported_at) for record in splits.seed),
    )
    files.write_json(workspace.label_batch(0), batch.model_dump(mode="json"))


def _rows(records: Sequence[ImageRecord]) -> list[AnnotatedImage]:
    return [
        AnnotatedImage(
            image_id(record),
            _uri(record),
            record.facts.width_px,
            record.facts.height_px,
            record.boxes or (),
            _UNBATCHED,
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
        offered_in=0,
    )


def _write_start(workspace: Workspace) -> None:
    """What the round before hands over, when there was none."""
    files.write_table(workspace.frozen_batch(0), FROZEN.empty_table())
    files.write_table(workspace.previous / "uncertainty.parquet", UNCERTAINTY.empty_table())
    files.write_json(workspace.previous / "history.json", [])
    files.write_json(workspace.previous / "class_weights.json", {})


def _index(records: Sequence[ImageRecord]) -> pa.Table:
    rows = [
        {
            "image_id": image_id(record),
            "uri": _uri(record),
            "bytes": record.facts.bytes,
            "sha256": record.facts.sha256,
            "source": record.file_name,
        }
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=INDEX)


def _summary(gathered: Gathered, splits: _Splits, plan: CampaignPlan, classes: Sequence[str]) -> CampaignData:
    findings = gathered.findings
    annotated = (*splits.val, *splits.calibration, *splits.seed, *splits.rest)
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
        "oracle_images": len(splits.rest) if plan.oracle else 0,
        "unused_annotations": 0 if plan.oracle else len(splits.rest),
        "set_aside": len(findings.set_aside),
        "duplicates_collapsed": gathered.duplicates_collapsed,
        "val_duplicates_dropped": gathered.val_duplicates_dropped,
        "clipped_boxes": findings.clipped_boxes,
    }
    set_aside, notes = (
        tuple(sorted((entry.model_dump() for entry in entries), key=lambda e: (e["where"], e["reason"])))
        for entries in (findings.set_aside, findings.notes)
    )
    return CampaignData(tuple(classes), counts, set_aside, notes)
