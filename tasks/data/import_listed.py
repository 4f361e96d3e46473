"""Decide what becomes of each image that the annotations list: used, listed again, not found, or set aside.

An image is set aside whole where one of its boxes is refused; the boxes of an image that is not used are counted under
the reason.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tasks.data.dataset_source import Part
from tasks.data.formats.base import ParsedDocument, ParsedImage
from tasks.data.image_decoding import ImageProblem
from tasks.data.image_record import NO_BOXES, BoxFate, BoxRows, ImageRecord
from tasks.data.images import ImageMetadata
from tasks.data.import_policy import (
    CheckedDocument,
    check_document,
    is_frame_unknown,
    num_converted,
    size_problem,
)
from tasks.data.import_report import Reason
from tasks.data.import_state import ImportState, Metadata
from tasks.data.names import Match
from tasks.runtime.formatting import count


def judge_part(
    part: Part, matches: Sequence[Match], metadata: Metadata, work: ImportState, val_names: set[tuple[int, str]]
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


def _report_document(document: ParsedDocument, work: ImportState) -> None:
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


def _choose_answers(part: Part, matches: Sequence[Match], work: ImportState) -> list[str]:
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
    work: ImportState,
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


def _report_boxes(checked: CheckedDocument, matches: Sequence[Match], sizes_M2: np.ndarray, work: ImportState) -> None:  # type: ignore[type-arg]
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


def _not_found(image: ParsedImage, match: Match, rows: BoxRows, work: ImportState) -> None:
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


def _record(
    image: ParsedImage, name: str, rows: BoxRows, part: Part, metadata: Metadata, work: ImportState
) -> ImageRecord:
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
    image: ParsedImage, record: ImageRecord, checked: CheckedDocument, position: int, work: ImportState
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
    work.note_frames(record)
