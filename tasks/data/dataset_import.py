"""Import a data set: annotations matched with images, boxes checked, validation apart, no image twice.

``dataset_source`` finds and reads, ``import_policy`` checks boxes; here each listed image and each file gets its fate.
Whatever is not used is named in the report, and the accounts of files, listed images and boxes add up.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tasks.data.box_rules import BoxRules
from tasks.data.dataset_source import DatasetSource, OpenedSource, Part, open_dataset
from tasks.data.formats.base import ParsedDocument, ParsedImage, near_equal_names
from tasks.data.formats.decoding import decode_text
from tasks.data.image_decoding import ImageProblem
from tasks.data.image_listing import ImageListing, inspect_images
from tasks.data.image_record import NO_BOXES, BoxColumns, BoxFate, BoxRows, ImageRecord
from tasks.data.images import ImageMetadata
from tasks.data.import_policy import (
    CheckedDocument,
    ImportPolicy,
    check_document,
    is_frame_unknown,
    num_converted,
    size_problem,
)
from tasks.data.import_report import Account, ImportReport, Reason
from tasks.data.names import ImageIndex, Match
from tasks.data.paths import image_id_from_sha256
from tasks.runtime.errors import UserError
from tasks.runtime.formatting import count

Metadata = Mapping[str, ImageMetadata | ImageProblem]


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


@dataclass
class _Import:
    """The state of one import."""

    policy: ImportPolicy
    rules: BoxRules
    metadata: Mapping[int, Metadata]
    """What each file turned out to be, by identity of the listing and by name."""
    report: ImportReport = field(default_factory=ImportReport)
    set_aside: set[tuple[int, str]] = field(default_factory=set)
    """Files that are not used because of a problem: identity of the listing and name."""
    listed: Counter[str] = field(default_factory=Counter)
    """Listed images by fate."""
    columns: list[BoxColumns] = field(default_factory=list)
    strays: int = 0

    def set_file_aside(self, listing: ImageListing, name: str, code: Reason, reason: str) -> None:
        """Set a file aside; only its first problem is reported, so that counts are counts of files."""
        if (id(listing), name) not in self.set_aside:
            self.set_aside.add((id(listing), name))
            sha256 = self.sha256((id(listing), name))
            self.report.reject(code, name, reason, None if sha256 is None else image_id_from_sha256(sha256))

    def sha256(self, file: tuple[int, str]) -> str | None:
        """Return the digest of a file; None: it cannot be decoded."""
        found = self.metadata[file[0]].get(file[1])
        return found.sha256 if isinstance(found, ImageMetadata) else None

    def is_set_aside(self, listing: ImageListing, name: str) -> bool:
        """Whether a file was set aside."""
        return (id(listing), name) in self.set_aside


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
    work = _Import(source.policy, rules or BoxRules(), metadata)
    records: dict[str, list[ImageRecord]] = {"train": [], "val": []}
    used: dict[str, set[tuple[int, str]]] = {"train": set(), "val": set()}
    for part in sorted(
        opened.parts, key=lambda part: part.split != "val"
    ):  # validation first: its images leave the pool
        judged, names = _judge(part, matches[id(part)], metadata[id(part.listing)], work, used["val"])
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


def _judge(
    part: Part, matches: Sequence[Match], metadata: Metadata, work: _Import, val_names: set[tuple[int, str]]
) -> tuple[list[ImageRecord], set[str]]:
    """Records of the usable images of a part, and the names of all files that its annotations mean."""
    records: list[ImageRecord] = []
    names: set[str] = set()
    answers = _choose_answers(part, matches, work)
    start = 0
    for document in part.documents:
        own = matches[start : start + len(document.images)]
        _report_document(document, work)
        records += _judge_document(document, own, answers[start : start + len(own)], part, metadata, work, val_names)
        names.update(match.found for match in own if match.found is not None)
        start += len(own)
    return records, names


def _report_document(document: ParsedDocument, work: _Import) -> None:
    for problem in document.problems:
        work.report.reject(Reason.CLASS_BROKEN, problem.entry, problem.text)
    for stray in document.strays:
        work.report.reject(Reason.STRAY_ANNOTATION, stray.entry, stray.text)
    for note in document.notes:
        work.report.note(Reason.TEXT_GUESSED, note.entry, note.text)
    for group in document.near_equal_names:
        names = ", ".join(repr(name) for name in group)
        work.report.note(Reason.CLASSES_NEARLY_EQUAL, document.where, f"{names}: expected one class each")
    work.strays += len(document.strays)
    work.listed["listed again"] += document.images_repeated


def _choose_answers(part: Part, matches: Sequence[Match], work: _Import) -> list[str]:
    """Of several entries for one file, which one counts: ``use``, ``again``, or why none can be used."""
    images = [image for document in part.documents for image in document.images]
    by_file: dict[str, list[int]] = defaultdict(list)
    for position, match in enumerate(matches):
        if match.found is not None:
            by_file[match.found].append(position)
    answers = ["use"] * len(images)
    for name, positions in by_file.items():
        if len(positions) < 2:
            continue
        chosen = _chosen(images, positions)
        for position in positions:
            answers[position] = "again"
        if chosen is None:
            answers[positions[0]] = f"the image is annotated {len(positions)} times with different boxes, expected once"
        else:
            answers[chosen] = "use"
            text = f"listed {len(positions)} times, {images[chosen].entry} is used"
            work.report.note(Reason.LISTED_AGAIN, name, text)
    return answers


def _chosen(images: Sequence[ParsedImage], positions: Sequence[int]) -> int | None:
    """The entry that counts: the only one that says something, one of several alike, or the latest."""
    telling = [p for p in positions if images[p].boxes or images[p].status in ("labeled", "empty")]
    if not telling:
        return positions[0]
    drawn = [{(box.category, box.xyxy, box.kind, box.is_crowd) for box in images[p].boxes} for p in telling]
    if all(boxes == drawn[0] for boxes in drawn):
        return telling[0]
    if all(images[p].finished_at for p in telling):
        return max(telling, key=lambda p: images[p].finished_at or "")
    return None


def _judge_document(
    document: ParsedDocument,
    matches: Sequence[Match],
    answers: Sequence[str],
    part: Part,
    metadata: Metadata,
    work: _Import,
    val_names: set[tuple[int, str]],
) -> list[ImageRecord]:
    sizes_M2 = np.full((len(document.images), 2), np.nan)
    for position, match in enumerate(matches):
        found = metadata.get(match.found) if match.found is not None else None
        is_answer = answers[position] == "use"
        if isinstance(found, ImageMetadata) and is_answer and size_problem(document.images[position], found) is None:
            sizes_M2[position] = found.width_px, found.height_px
    checked = check_document(document, sizes_M2, work.policy, work.rules)
    work.columns.append(checked.columns)
    _report_boxes(checked, matches, sizes_M2, work)
    has_refused = checked.has_refused_box()
    records = []
    for position, (image, match) in enumerate(zip(document.images, matches, strict=True)):
        rows = BoxRows(checked.columns, *checked.span(position))
        if match.found is None:
            _not_found(image, match, rows, work)
            continue
        if answers[position] == "again" or (part.split == "train" and (id(part.listing), match.found) in val_names):
            work.listed["listed again"] += 1
            _refuse_rest(rows, BoxFate.LISTED_AGAIN)
            continue
        problem = _image_problem(image, metadata[match.found], answers[position])
        if problem is None and has_refused[position]:
            problem = Reason.BOX_REFUSED, _first_refusal(checked, position)
        if problem is not None:
            work.set_file_aside(part.listing, match.found, *problem)
            work.listed["set aside"] += 1
            _refuse_rest(rows, BoxFate.IMAGE_SET_ASIDE)
            continue
        record = _record(image, match.found, rows, part, metadata, work)
        _note_image(image, record, checked, position, work)
        if part.split == "train" or record.boxes is not None:
            records.append(record)
        else:
            reason = "listed without boxes, and nothing says that it was reviewed: it may hold unlabeled objects"
            work.report.leave_out(Reason.NOT_REVIEWED, match.found, reason)
    return records


def _report_boxes(checked: CheckedDocument, matches: Sequence[Match], sizes_M2: np.ndarray, work: _Import) -> None:  # type: ignore[type-arg]
    """Name the boxes that are refused for what they are, on images that were looked at."""
    table = checked.table
    if table is None:
        return
    for row, fate, reason in checked.refusals():
        position = int(table.image[row])
        name = matches[position].found
        if name is not None and np.isfinite(sizes_M2[position, 0]):
            work.report.refuse_box(fate, f"{name}: {table.entry_format.format(int(table.position[row]))}", reason)


def _refuse_rest(rows: BoxRows, fate: BoxFate) -> None:
    """Refuse the boxes of an image that is not used; those refused for what they are keep their reason."""
    fates = rows.columns.fate_N[rows.start : rows.stop]
    keep_own = (fates > BoxFate.CLIPPED) & (fates != BoxFate.CROWD) & (fate == BoxFate.IMAGE_SET_ASIDE)
    fates[:] = np.where(keep_own, fates, fate)


def _not_found(image: ParsedImage, match: Match, rows: BoxRows, work: _Import) -> None:
    if not image.name:
        work.listed["set aside"] += 1
        work.report.reject(Reason.ENTRY_BROKEN, image.entry, image.first_problem or "the image has no name")
        _refuse_rest(rows, BoxFate.IMAGE_SET_ASIDE)
        return
    work.listed["not found"] += 1
    is_ambiguous = bool(match.candidates) and match.taken_by is None
    code = Reason.NAME_AMBIGUOUS if is_ambiguous else Reason.IMAGE_NOT_FOUND
    work.report.reject(code, image.name[:200], match.problem or "")
    _refuse_rest(rows, BoxFate.IMAGE_NOT_FOUND)


def _set_candidates_aside(
    opened: OpenedSource,
    matches: Mapping[int, Sequence[Match]],
    used: Mapping[str, set[tuple[int, str]]],
    work: _Import,
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


def _image_problem(
    image: ParsedImage, metadata: ImageMetadata | ImageProblem, answer: str
) -> tuple[Reason, str] | None:
    """Why an image cannot be used, its boxes apart."""
    if isinstance(metadata, ImageProblem):
        return Reason.IMAGE_UNREADABLE, str(metadata)
    if image.problems:
        return Reason.ENTRY_BROKEN, f"{image.entry}: {image.problems[0]}"
    if answer != "use":
        return Reason.SEVERAL_ANSWERS, answer
    size = size_problem(image, metadata)
    if size is not None:
        return (Reason.DRAWN_BEFORE_TURN if size[1] else Reason.SIZE_DIFFERS), size[0]
    return None


def _first_refusal(checked: CheckedDocument, position: int) -> str:
    start, stop = checked.span(position)
    fates = checked.columns.fate_N[start:stop].tolist()
    row = next(start + n for n, fate in enumerate(fates) if BoxFate(fate).sets_image_aside)
    return checked.message(row)


def _record(image: ParsedImage, name: str, rows: BoxRows, part: Part, metadata: Metadata, work: _Import) -> ImageRecord:
    """The image with its boxes; None boxes where nobody says that it was reviewed."""
    facts = metadata[name]
    assert isinstance(facts, ImageMetadata)
    boxes: BoxRows | None = rows
    if rows.is_empty:
        is_reviewed = image.status in ("labeled", "empty") or (
            image.status is None and work.policy.unannotated == "empty"
        )
        boxes = NO_BOXES if is_reviewed else None
    work.listed["unlabeled" if boxes is None else "empty" if boxes.is_empty else "annotated"] += 1
    return ImageRecord(name, part.listing, facts, boxes)


def _note_image(
    image: ParsedImage, record: ImageRecord, checked: CheckedDocument, position: int, work: _Import
) -> None:
    """Point out what was decided about an image that is used."""
    start, stop = checked.span(position)
    clipped = int(np.count_nonzero(checked.columns.fate_N[start:stop] == BoxFate.CLIPPED))
    if clipped:
        boxes = "1 box" if clipped == 1 else f"{clipped} boxes"
        text = f"{boxes} at most {work.rules.clip_tolerance_px:g} px outside the image, clipped"
        work.report.note(Reason.CLIPPED, record.file_name, text)
    regions = record.boxes.crowd_regions() if record.boxes is not None else ()
    if regions:
        text = f"{count(len(regions), 'crowd or ignored region')}: neither object nor background"
        work.report.note(Reason.REGION, record.file_name, text)
    if work.policy.polygons == "box" and (converted := num_converted(checked, start, stop)):
        text = f"{converted} of its shapes taken as bounding boxes"
        work.report.note(Reason.SHAPE_CONVERTED, record.file_name, text)
    if record.boxes and is_frame_unknown(image, record.metadata):
        text = (
            f"EXIF orientation {record.metadata.exif_orientation}: its boxes are taken as drawn on the upright picture"
        )
        work.report.note(Reason.EXIF_TURN, record.file_name, text)
    _note_frames(record, work)


def _note_frames(record: ImageRecord, work: _Import) -> None:
    if record.metadata.num_frames > 1:
        text = f"it holds {record.metadata.num_frames} pictures, the first is used"
        work.report.note(Reason.FIRST_FRAME, record.file_name, text)


def _require_usable(opened: OpenedSource, train: Sequence[ImageRecord], work: _Import) -> None:
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


def _listed_for_val(path: Path, train: Sequence[ImageRecord], work: _Import) -> list[ImageRecord]:
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
    opened: OpenedSource, metadata: Mapping[int, Metadata], used: Mapping[str, set[tuple[int, str]]], work: _Import
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
        _note_frames(record, work)
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
    train: Sequence[ImageRecord], unlisted: Sequence[ImageRecord], val: Sequence[ImageRecord], work: _Import
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


def _digests_set_aside(work: _Import) -> list[tuple[tuple[int, str], str]]:
    """The files that are set aside and can be decoded, the first by name last."""
    files = sorted(work.set_aside, key=lambda file: file[1], reverse=True)
    return [(file, sha256) for file in files if (sha256 := work.sha256(file)) is not None]


def _leave_out(opened: OpenedSource, used: Mapping[str, set[tuple[int, str]]], work: _Import) -> int:
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
    work: _Import,
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
    files = _file_account(opened, work, len(kept), len(val_by_id), duplicates, left_out)
    return ImportedDataset(
        format=opened.format,
        pool=_sort_by_id(kept),
        val=None if val is None else _sort_by_id(val_by_id.values()),
        class_names=class_names,
        report=work.report,
        duplicates_collapsed=collapsed + collapsed_val,
        val_duplicates_dropped=dropped,
        accounts=(files, _listed_account(documents, work), _box_account(work)),
        found=tuple(opened.found),
        pool_folder=opened.pool_folder,
    )


def _file_account(opened: OpenedSource, work: _Import, pool: int, val: int, duplicates: int, left_out: int) -> Account:
    passed_over: Counter[str] = Counter()
    annotation_files = images = links = 0
    for position, listing in enumerate(opened.listings):
        read = opened.num_annotation_files.get(position, {})
        passed_over += Counter(listing.passed_over) - Counter(read)
        annotation_files += sum(read.values())
        images += sum(1 for _ in listing.names())
        links += len(listing.skipped_links)
    parts = {
        "pool": pool,
        "validation": val,
        "duplicates": duplicates,
        "set aside": len(work.set_aside) + links,
        "left out": left_out,
        "annotation files": annotation_files,
        "passed over": passed_over.total(),
    }
    total = images + links + annotation_files + passed_over.total()
    return Account("files", total, parts, {"passed over": dict(passed_over.most_common())})


def _listed_account(documents: Sequence[ParsedDocument], work: _Import) -> Account:
    names = ("annotated", "empty", "unlabeled", "not found", "set aside", "listed again")
    total = sum(len(document.images) + document.images_repeated for document in documents)
    return Account("listed images", total, {name: work.listed[name] for name in names})


def _box_account(work: _Import) -> Account:
    counts: Counter[BoxFate] = Counter({BoxFate.STRAY: work.strays})
    for columns in work.columns:
        counts.update(columns.counts())
    refused = {fate.words: counts[fate] for fate in BoxFate if not fate.is_used}
    parts = {
        "kept": counts[BoxFate.KEPT],
        "clipped": counts[BoxFate.CLIPPED],
        BoxFate.CROWD.words: counts[BoxFate.CROWD],
        "refused": sum(refused.values()),
    }
    total = sum(len(columns.fate_N) for columns in work.columns) + work.strays
    return Account("boxes read", total, parts, {"refused": refused})


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
