"""Everything a user hands in put together: annotated and bare images, validation apart, no image twice."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.errors import UserError
from tasks.images import ImageProblem
from tasks.importers import Format, read_annotations
from tasks.importers.folder import ImageSource, image_source
from tasks.importers.records import Findings, ImageRecord, Imported
from tasks.paths import image_id_of
from tasks.progress import track


@dataclass(frozen=True)
class Source:
    """What ``gleaner init`` is pointed at."""

    layout: Format
    annotations: Path
    """COCO: a JSON file. VOC: a folder of XML files."""
    images: Path | ImageSource
    """Every picture below it belongs to the pool, annotated or not."""
    val: Path | None
    """The fixed validation set: a COCO JSON file, a folder of VOC XML files, or a text file with one
    image of ``annotations`` a line (its name, or its name without ending). None: drawn at random."""
    val_images: Path | ImageSource | None
    """Images of ``val``; None: ``images``."""


@dataclass(frozen=True)
class Gathered:
    """Unique images. Pool and validation share none."""

    pool: tuple[ImageRecord, ...]
    """Sorted by image id; ``boxes`` is None where nobody has looked yet."""
    val: tuple[ImageRecord, ...] | None
    """Sorted by image id; None: the user gave no validation set."""
    findings: Findings
    duplicates_collapsed: int
    val_duplicates_dropped: int


def image_id(record: ImageRecord) -> str:
    """Identity of the image: the first 16 hex digits of its SHA-256."""
    return image_id_of(record.facts.sha256)


def gather(source: Source, *, max_pixels: int) -> Gathered:
    """Read all of ``source``.

    Raises:
        UserError: annotations, images or validation set are missing, unreadable, or hold nothing usable.
    """
    train = read_annotations(source.layout, source.annotations, source.images, max_pixels=max_pixels)
    findings = train.findings
    val, val_names = _read_val(source, train, max_pixels)
    known = {record.file_name for record in train.records} | findings.refused | val_names
    bare = _bare(image_source(source.images, max_pixels=max_pixels), known, findings)
    pool = [record for record in train.records if record.file_name not in val_names] + bare
    unique_pool, collapsed = _unique(pool, findings)
    unique_val, collapsed_val = _unique(val or [], findings)
    kept, dropped = _without(unique_pool, unique_val, findings)
    return Gathered(
        pool=_sorted(kept),
        val=None if val is None else _sorted(unique_val.values()),
        findings=findings,
        duplicates_collapsed=collapsed + collapsed_val,
        val_duplicates_dropped=dropped,
    )


def _bare(folder: ImageSource, known: set[str], findings: Findings) -> list[ImageRecord]:
    """Images of the folder that no annotation names."""
    names = [name for name in folder.names() if name not in known]
    records = []
    for name in track(names, "reading images without annotation", total=len(names)):
        try:
            path, facts = folder.inspect(name)
        except ImageProblem as problem:
            findings.refuse_image(name, str(problem))
            continue
        records.append(ImageRecord(name, path, facts, None))
    return records


def _read_val(source: Source, train: Imported, max_pixels: int) -> tuple[list[ImageRecord] | None, set[str]]:
    """The user's validation images, and the names they and the unusable ones have in the pool's folder."""
    if source.val is None:
        return None, set()
    if not source.val.is_dir() and source.val.suffix.lower() != ".json":
        listed = _listed(source.val, train)
        return listed, {record.file_name for record in listed}
    images = source.val_images or source.images
    val = read_annotations("voc" if source.val.is_dir() else "coco", source.val, images, max_pixels=max_pixels)
    train.findings.absorb(val.findings)
    names = {record.file_name for record in val.records} | val.findings.refused
    return list(val.records), names if images == source.images else set()


def _listed(path: Path, train: Imported) -> list[ImageRecord]:
    """The records a text file names, one a line."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        problem = f"the validation list is unreadable ({error}), expected a text file with one image a line"
        raise UserError(path, problem, "Check --val.") from None
    by_name = _by_any_name(train.records)
    refused = {name for known in train.findings.refused for name in _names(known)}
    chosen: dict[str, ImageRecord] = {}
    for line in filter(None, lines):
        if line in refused:
            continue  # named already, with its reason
        matches = by_name.get(line, [])
        if len(matches) == 1:
            chosen[matches[0].file_name] = matches[0]
        else:
            reason = f"validation image {line[:100]!r} matches {len(matches)} annotated images, expected 1"
            train.findings.refuse(path.name, reason)
    if not chosen:
        problem = f"validation images found are 0 of {len(lines)} lines, expected at least 1"
        raise UserError(path, problem, "Check --val: it lists names of images in the annotations.")
    return list(chosen.values())


def _names(file_name: str) -> set[str]:
    """What a list may call an image: its name, with and without folder and ending."""
    pure = PurePosixPath(file_name)
    return {file_name, pure.name, pure.stem, pure.with_suffix("").as_posix()} if pure.name else {file_name}


def _by_any_name(records: Iterable[ImageRecord]) -> dict[str, list[ImageRecord]]:
    by_name: dict[str, list[ImageRecord]] = {}
    for record in records:
        for name in _names(record.file_name):
            by_name.setdefault(name, []).append(record)
    return by_name


def _unique(records: Iterable[ImageRecord], findings: Findings) -> tuple[dict[str, ImageRecord], int]:
    """One record per image, of exact duplicates the annotated and first by name; how many were dropped."""
    kept: dict[str, ImageRecord] = {}
    dropped = 0
    for record in sorted(records, key=lambda r: (r.boxes is None, r.file_name)):
        first = kept.setdefault(image_id(record), record)
        if first is not record:
            dropped += 1
            differs = record.boxes is not None and set(record.boxes) != set(first.boxes or ())
            reason = f"same bytes as {first.file_name}, collapsed"
            findings.note(record.file_name, reason + ("; its boxes differ and were dropped" if differs else ""))
    return kept, dropped


def _without(
    pool: dict[str, ImageRecord], val: dict[str, ImageRecord], findings: Findings
) -> tuple[list[ImageRecord], int]:
    """The pool without images of the validation set: one in both would leak the answers."""
    kept = []
    for key, record in pool.items():
        if key in val:
            findings.note(
                record.file_name, f"same bytes as validation image {val[key].file_name}, left out of the pool"
            )
        else:
            kept.append(record)
    return kept, len(pool) - len(kept)


def _sorted(records: Iterable[ImageRecord]) -> tuple[ImageRecord, ...]:
    return tuple(sorted(records, key=image_id))
