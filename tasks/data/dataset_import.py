"""Import a data set: annotations matched with images, boxes checked, validation apart, no image twice.

``dataset_source`` finds and reads, ``import_policy`` checks boxes, ``import_listed`` decides about each listed image;
here each file gets its fate. Whatever is not used is named in the report, and the accounts of files, listed images and
boxes add up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.data.box_rules import BoxRules
from tasks.data.dataset_source import DatasetSource, OpenedSource, Part, open_dataset
from tasks.data.formats.base import near_equal_names
from tasks.data.formats.decoding import decode_text
from tasks.data.image_decoding import ImageProblem
from tasks.data.image_listing import inspect_images
from tasks.data.image_record import BoxFate, ImageRecord
from tasks.data.import_accounts import box_account, file_account, listed_account
from tasks.data.import_listed import judge_part
from tasks.data.import_report import Account, ImportReport, Reason
from tasks.data.import_state import ImportState, Metadata
from tasks.data.names import ImageIndex, Match
from tasks.runtime.errors import UserError


@dataclass(frozen=True)
class ImportedDataset:
    """Unique images. Pool and validation share none."""

    format: str
    pool: tuple[ImageRecord, ...]
    """Sorted by image id; ``boxes`` is None where nobody has looked yet."""
    val: tuple[ImageRecord, ...] | None
    """Sorted by image id; None: the user gave no validation set."""
    class_names: tuple[str, ...]
    """Classes of the user and of the documents, with or without boxes."""
    report: ImportReport
    duplicates_collapsed: int
    val_duplicates_dropped: int
    accounts: tuple[Account, ...]
    """Files, listed images, boxes."""
    found: tuple[str, ...] = ()
    """What was found and which split becomes what, a line each."""
    pool_folder: str | None = ""
    """Folder of the source that holds the pool and nothing else, with a slash behind it; None: there is none."""


def import_dataset(source: DatasetSource, *, max_pixels: int, rules: BoxRules | None = None) -> ImportedDataset:
    """Read all of a source.

    Args:
        source: what the user points at.
        max_pixels: images with more pixels are set aside undecoded.
        rules: limits of boxes, the same as for labels that come back; None: the usual ones.

    Raises:
        UserError: annotations, images or validation set are missing, unreadable, or hold nothing usable.
    """
    opened = open_dataset(source, max_pixels=max_pixels)
    matches = {id(part): _match(part) for part in opened.parts}
    metadata = _inspect(opened, matches)
    work = ImportState(source.policy, rules or BoxRules(), metadata)
    records: dict[str, list[ImageRecord]] = {"train": [], "val": []}
    used: dict[str, set[tuple[int, str]]] = {"train": set(), "val": set()}
    for part in sorted(
        opened.parts, key=lambda part: part.split != "val"
    ):  # validation first: its images leave the pool
        judged, names = judge_part(part, matches[id(part)], metadata[id(part.listing)], work, used["val"])
        records[part.split] += judged
        used[part.split] |= {(id(part.listing), name) for name in names}
    _set_candidates_aside(opened, matches, used, work)
    _require_usable(opened, records["train"], work)
    val: list[ImageRecord] | None = records["val"] if opened.has_val else None
    train = records["train"]
    if opened.val_list is not None:
        val = _listed_for_val(opened.val_list, train, work)
        chosen = {record.file_name for record in val}
        train = [record for record in train if record.file_name not in chosen]
    pool = _without_copies(train, _unlisted(opened, metadata, used, work), val or [], work)
    left_out = _leave_out(opened, used, work)
    return _finish(opened, source, pool, val, work, left_out)


def _match(part: Part) -> list[Match]:
    """The image of each entry, document after document."""
    named = ((image.name, image.alternative_names) for document in part.documents for image in document.images)
    return ImageIndex(part.names).match_all(named)


def _inspect(opened: OpenedSource, matches: Mapping[int, Sequence[Match]]) -> dict[int, Metadata]:
    """Decode every image that may be used, once, by listing."""
    wanted: dict[int, dict[str, None]] = {id(listing): {} for listing in opened.listings}
    wanted[id(opened.listings[0])] = dict.fromkeys(opened.pool_names)
    for part in opened.parts:
        found = (match.found for match in matches[id(part)] if match.found is not None)
        wanted[id(part.listing)].update(dict.fromkeys(found))
    return {id(listing): inspect_images(listing, wanted[id(listing)]) for listing in opened.listings}


def _set_candidates_aside(
    opened: OpenedSource,
    matches: Mapping[int, Sequence[Match]],
    used: Mapping[str, set[tuple[int, str]]],
    work: ImportState,
) -> None:
    """Set the images aside that an ambiguous name may mean: as unlabeled ones they would be labeled twice.

    Images that another entry of either split means for sure are none of them. ``used`` gets what is set aside.
    """
    certain = used["train"] | used["val"]
    for part in opened.parts:
        ambiguous = [m for m in matches[id(part)] if m.found is None and m.candidates and m.taken_by is None]
        index = ImageIndex(part.names) if ambiguous else None
        for match in ambiguous:
            assert index is not None
            for candidate in index.candidates(match.name):
                file = id(part.listing), candidate
                if file not in certain:
                    reason = f"it may be the image {match.name[:100]!r} of the annotations, whose name fits several"
                    work.set_file_aside(part.listing, candidate, Reason.NAME_AMBIGUOUS, f"{reason} images")
                    used[part.split].add(file)


def _require_usable(opened: OpenedSource, train: Sequence[ImageRecord], work: ImportState) -> None:
    if train:
        return
    rejected = work.report.rejected
    links = opened.listings[0].skipped_links
    if links:
        problem = f"usable images are 0, and {len(links)} files are links, expected images"
        raise UserError(opened.where, problem, "Follow them with --follow-links.")
    listed = sum(len(document.images) for part in opened.parts if part.split == "train" for document in part.documents)
    first = f"The first one set aside is {rejected[0].item}: {rejected[0].reason}." if rejected else ""
    raise UserError(opened.where, f"usable images are 0 of {listed} listed, expected at least 1", first)


def _listed_for_val(path: Path, train: Sequence[ImageRecord], work: ImportState) -> list[ImageRecord]:
    """The records that a text file names, one a line."""
    try:
        lines = [line.strip() for line in decode_text(path.read_bytes())[0].splitlines()]
    except OSError as error:
        problem = f"the validation list is unreadable ({error.strerror}), expected a text file with one image a line"
        raise UserError(path, problem, "Check --val.") from None
    by_name = {record.file_name: record for record in train}
    aside = {name for _, name in work.set_aside}
    index = ImageIndex([*by_name, *sorted(aside)])
    chosen: dict[str, ImageRecord] = {}
    for line in filter(None, lines):
        match = index.find(line)
        if match.found in aside:
            continue  # named already, with its reason
        record = by_name.get(match.found or "")
        if record is None:
            work.report.reject(Reason.VAL_LIST, path.name, f"line {line[:100]!r}: {match.problem}")
        elif record.boxes is None:
            text = "listed without boxes, and nothing says that it was reviewed: it may hold unlabeled objects"
            work.report.note(Reason.NOT_REVIEWED, record.file_name, f"{text}; it stays in the pool")
        else:
            chosen[record.file_name] = record
    if not chosen:
        problem = f"validation images found are 0 of {len(lines)} lines, expected at least 1"
        raise UserError(path, problem, "Check --val: it lists names of images in the annotations.")
    return list(chosen.values())


def _unlisted(
    opened: OpenedSource, metadata: Mapping[int, Metadata], used: Mapping[str, set[tuple[int, str]]], work: ImportState
) -> list[ImageRecord]:
    """Pool images that no annotation lists."""
    listing = opened.listings[0]
    for link in listing.skipped_links:
        work.report.reject(Reason.LINK_NOT_FOLLOWED, link, "the file is a link, expected --follow-links to follow it")
    records = []
    for name in opened.pool_names:
        key = (id(listing), name)
        if key in used["train"] or key in used["val"] or key in work.set_aside:
            continue
        facts = metadata[id(listing)][name]
        if isinstance(facts, ImageProblem):
            work.set_file_aside(listing, name, Reason.IMAGE_UNREADABLE, str(facts))
            continue
        record = ImageRecord(name, listing, facts, None)
        work.note_frames(record)
        records.append(record)
    if records and work.listed["not found"]:
        missing = work.listed["not found"]
        text = (
            f"{missing} listed images were not found, and {len(records)} images are listed by nothing; "
            "where they are the same, they would be labeled again. Compare the names"
        )
        work.report.note(Reason.MAYBE_UNLISTED, str(listing), text)
    return records


def _without_copies(
    train: Sequence[ImageRecord], unlisted: Sequence[ImageRecord], val: Sequence[ImageRecord], work: ImportState
) -> list[ImageRecord]:
    """The pool; set aside what nobody has labeled and has the bytes of an image that was set aside.

    As an unlabeled image it would get in under its other name.
    """
    annotated = {record.metadata.sha256 for record in (*train, *val) if record.boxes is not None}
    first_of = {sha256: name for (_, name), sha256 in _digests_set_aside(work) if sha256 not in annotated}
    kept = []
    for position, record in enumerate((*train, *unlisted)):
        first = first_of.get(record.metadata.sha256)
        if record.boxes is not None or first is None:
            kept.append(record)
            continue
        work.set_file_aside(record.listing, record.file_name, Reason.COPY, f"same bytes as {first}, which is set aside")
        if position < len(train):
            work.listed["unlabeled"] -= 1
            work.listed["set aside"] += 1
    return kept


def _digests_set_aside(work: ImportState) -> list[tuple[tuple[int, str], str]]:
    """The files that are set aside and can be decoded, the first by name last."""
    files = sorted(work.set_aside, key=lambda file: file[1], reverse=True)
    return [(file, sha256) for file in files if (sha256 := work.sha256(file)) is not None]


def _leave_out(opened: OpenedSource, used: Mapping[str, set[tuple[int, str]]], work: ImportState) -> int:
    """Name the files that are in order and not used; return how many there are."""
    first = opened.listings[0]
    for name, split in opened.left_out.items():
        if (id(first), name) not in used["val"] | used["train"]:
            work.report.leave_out(Reason.TEST_SPLIT, name, f"it belongs to the split {split}, which is not used")
    pool_names = set(opened.pool_names)
    for listing in opened.listings:
        for name in listing.names():
            is_known = listing is first and (name in pool_names or name in opened.left_out)
            if not is_known and (id(listing), name) not in used["val"] | used["train"]:
                work.report.leave_out(Reason.VAL_UNLISTED, name, "no annotation of the validation set lists it")
    return len(work.report.left_out)


def _finish(
    opened: OpenedSource,
    source: DatasetSource,
    pool: list[ImageRecord],
    val: list[ImageRecord] | None,
    work: ImportState,
    left_out: int,
) -> ImportedDataset:
    """Collapse duplicates and draw up the accounts."""
    pool_by_id, collapsed = _deduplicate(pool, work.report)
    val_by_id, collapsed_val = _deduplicate(val or [], work.report)
    kept, dropped = _exclude_val(pool_by_id, val_by_id, work.report)
    documents = [document for part in opened.parts for document in part.documents]
    class_names = tuple(dict.fromkeys([*source.classes, *(n for document in documents for n in document.class_names)]))
    noted = {entry.reason for entry in work.report.notes if entry.code == Reason.CLASSES_NEARLY_EQUAL}
    for group in near_equal_names(class_names):
        text = f"{', '.join(repr(name) for name in group)}: expected one class each"
        if text not in noted:
            work.report.note(Reason.CLASSES_NEARLY_EQUAL, "classes", text)
    duplicates = collapsed + collapsed_val + dropped
    files = file_account(opened, work, len(kept), len(val_by_id), duplicates, left_out)
    return ImportedDataset(
        format=opened.format,
        pool=_sort_by_id(kept),
        val=None if val is None else _sort_by_id(val_by_id.values()),
        class_names=class_names,
        report=work.report,
        duplicates_collapsed=collapsed + collapsed_val,
        val_duplicates_dropped=dropped,
        accounts=(files, listed_account(documents, work), box_account(work)),
        found=tuple(opened.found),
        pool_folder=opened.pool_folder,
    )


def _deduplicate(records: Iterable[ImageRecord], report: ImportReport) -> tuple[dict[str, ImageRecord], int]:
    """One record per image, of exact duplicates the annotated and first by name; how many were dropped."""
    kept: dict[str, ImageRecord] = {}
    dropped = 0
    for record in sorted(records, key=lambda r: (r.boxes is None, r.file_name)):
        first = kept.setdefault(record.image_id, record)
        if first is not record:
            dropped += 1
            differs = record.boxes is not None and set(record.boxes) != set(first.boxes or ())
            reason = f"same bytes as {first.file_name}, collapsed"
            reason += "; its boxes differ and were dropped" if differs else ""
            report.note(Reason.DUPLICATE, record.file_name, reason)
            if record.boxes is not None:
                record.boxes.refuse(BoxFate.IMAGE_DUPLICATE)
    return kept, dropped


def _exclude_val(
    pool: dict[str, ImageRecord], val: dict[str, ImageRecord], report: ImportReport
) -> tuple[list[ImageRecord], int]:
    """The pool without images of the validation set: one in both would leak the answers."""
    kept = []
    for key, record in pool.items():
        if key in val:
            text = f"same bytes as validation image {val[key].file_name}, left out of the pool"
            report.note(Reason.LEAK, record.file_name, text)
            if record.boxes is not None:
                record.boxes.refuse(BoxFate.IMAGE_DUPLICATE)
        else:
            kept.append(record)
    return kept, len(pool) - len(kept)


def _sort_by_id(records: Iterable[ImageRecord]) -> tuple[ImageRecord, ...]:
    return tuple(sorted(records, key=lambda record: record.image_id))
