"""Everything a user hands in put together: annotated and bare images, validation apart, no image twice."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.data.images import ImageProblem
from tasks.data.importers import Format, read_annotations
from tasks.data.importers.folder import ImageResolver, image_resolver
from tasks.data.importers.import_report import ImageRecord, ImportReport, ImportResult
from tasks.data.paths import image_id_from_sha256
from tasks.runtime.errors import UserError
from tasks.runtime.progress import track


@dataclass(frozen=True)
class DatasetSource:
    """What ``gleaner init`` is pointed at."""

    annotation_format: Format
    annotations: Path
    """COCO: a JSON file. VOC: a folder of XML files."""
    images: Path | ImageResolver
    """Every picture below it belongs to the pool, annotated or not."""
    val: Path | None
    """The fixed validation set: a COCO JSON file, a folder of VOC XML files, or a text file with one
    image of ``annotations`` a line (its name, or its name without ending). None: drawn at random."""
    val_images: Path | ImageResolver | None
    """Images of ``val``; None: ``images``."""


@dataclass(frozen=True)
class ImportedDataset:
    """Unique images. Pool and validation share none."""

    pool: tuple[ImageRecord, ...]
    """Sorted by image id; ``boxes`` is None where nobody has looked yet."""
    val: tuple[ImageRecord, ...] | None
    """Sorted by image id; None: the user gave no validation set."""
    report: ImportReport
    duplicates_collapsed: int
    val_duplicates_dropped: int


def image_id(record: ImageRecord) -> str:
    """Identity of the image: the first 16 hex digits of its SHA-256."""
    return image_id_from_sha256(record.metadata.sha256)


def import_dataset(source: DatasetSource, *, max_pixels: int) -> ImportedDataset:
    """Read all of ``source``.

    Raises:
        UserError: annotations, images or validation set are missing, unreadable, or hold nothing usable.
    """
    train = read_annotations(source.annotation_format, source.annotations, source.images, max_pixels=max_pixels)
    report = train.report
    val, val_names = _read_val(source, train, max_pixels)
    known = {record.file_name for record in train.records} | report.rejected_images | val_names
    unannotated = _unannotated_images(image_resolver(source.images, max_pixels=max_pixels), known, report)
    pool = [record for record in train.records if record.file_name not in val_names] + unannotated
    pool_by_id, collapsed = _deduplicate(pool, report)
    val_by_id, collapsed_val = _deduplicate(val or [], report)
    kept, dropped = _exclude_val(pool_by_id, val_by_id, report)
    return ImportedDataset(
        pool=_sort_by_id(kept),
        val=None if val is None else _sort_by_id(val_by_id.values()),
        report=report,
        duplicates_collapsed=collapsed + collapsed_val,
        val_duplicates_dropped=dropped,
    )


def _unannotated_images(resolver: ImageResolver, known: set[str], report: ImportReport) -> list[ImageRecord]:
    """Images of the folder that no annotation names."""
    names = [name for name in resolver.names() if name not in known]
    records = []
    for name in track(names, "reading images without annotation", total=len(names)):
        try:
            path, facts = resolver.inspect(name)
        except ImageProblem as problem:
            report.reject_image(name, str(problem))
            continue
        records.append(ImageRecord(name, path, facts, None))
    return records


def _read_val(source: DatasetSource, train: ImportResult, max_pixels: int) -> tuple[list[ImageRecord] | None, set[str]]:
    """The user's validation images, and the names they and the unusable ones have in the pool's folder."""
    if source.val is None:
        return None, set()
    if not source.val.is_dir() and source.val.suffix.lower() != ".json":
        val_records = _read_val_list(source.val, train)
        return val_records, {record.file_name for record in val_records}
    images = source.val_images or source.images
    val = read_annotations("voc" if source.val.is_dir() else "coco", source.val, images, max_pixels=max_pixels)
    train.report.merge(val.report)
    names = {record.file_name for record in val.records} | val.report.rejected_images
    return list(val.records), names if images == source.images else set()


def _read_val_list(path: Path, train: ImportResult) -> list[ImageRecord]:
    """The records a text file names, one a line."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        problem = f"the validation list is unreadable ({error}), expected a text file with one image a line"
        raise UserError(path, problem, "Check --val.") from None
    by_name = _index_by_name(train.records)
    rejected_names = {name for known in train.report.rejected_images for name in _name_variants(known)}
    chosen: dict[str, ImageRecord] = {}
    for line in filter(None, lines):
        if line in rejected_names:
            continue  # named already, with its reason
        matches = by_name.get(line, [])
        if len(matches) == 1:
            chosen[matches[0].file_name] = matches[0]
        else:
            reason = f"validation image {line[:100]!r} matches {len(matches)} annotated images, expected 1"
            train.report.reject(path.name, reason)
    if not chosen:
        problem = f"validation images found are 0 of {len(lines)} lines, expected at least 1"
        raise UserError(path, problem, "Check --val: it lists names of images in the annotations.")
    return list(chosen.values())


def _name_variants(file_name: str) -> set[str]:
    """What a list may call an image: its name, with and without folder and ending."""
    pure = PurePosixPath(file_name)
    return {file_name, pure.name, pure.stem, pure.with_suffix("").as_posix()} if pure.name else {file_name}


def _index_by_name(records: Iterable[ImageRecord]) -> dict[str, list[ImageRecord]]:
    by_name: dict[str, list[ImageRecord]] = {}
    for record in records:
        for name in _name_variants(record.file_name):
            by_name.setdefault(name, []).append(record)
    return by_name


def _deduplicate(records: Iterable[ImageRecord], report: ImportReport) -> tuple[dict[str, ImageRecord], int]:
    """One record per image, of exact duplicates the annotated and first by name; how many were dropped."""
    kept: dict[str, ImageRecord] = {}
    dropped = 0
    for record in sorted(records, key=lambda r: (r.boxes is None, r.file_name)):
        first = kept.setdefault(image_id(record), record)
        if first is not record:
            dropped += 1
            differs = record.boxes is not None and set(record.boxes) != set(first.boxes or ())
            reason = f"same bytes as {first.file_name}, collapsed"
            report.note(record.file_name, reason + ("; its boxes differ and were dropped" if differs else ""))
    return kept, dropped


def _exclude_val(
    pool: dict[str, ImageRecord], val: dict[str, ImageRecord], report: ImportReport
) -> tuple[list[ImageRecord], int]:
    """The pool without images of the validation set: one in both would leak the answers."""
    kept = []
    for key, record in pool.items():
        if key in val:
            report.note(record.file_name, f"same bytes as validation image {val[key].file_name}, left out of the pool")
        else:
            kept.append(record)
    return kept, len(pool) - len(kept)


def _sort_by_id(records: Iterable[ImageRecord]) -> tuple[ImageRecord, ...]:
    return tuple(sorted(records, key=image_id))
