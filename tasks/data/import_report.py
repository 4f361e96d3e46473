"""Collect what an import met that was not as expected, and account for every file, listed image and box."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tasks.data.image_record import BoxFate
from tasks.data.names import printable

EXAMPLES_SHOWN = 5


class Reason(StrEnum):
    """Why something was set aside, left out or pointed out. The value is the code in ``import_report.json``."""

    ENTRY_BROKEN = "entry_broken"
    CLASS_BROKEN = "class_broken"
    STRAY_ANNOTATION = "stray_annotation"
    IMAGE_NOT_FOUND = "image_not_found"
    NAME_AMBIGUOUS = "name_ambiguous"
    IMAGE_UNREADABLE = "image_unreadable"
    COPY = "copy_of_set_aside"
    LINK_NOT_FOLLOWED = "link_not_followed"
    SIZE_DIFFERS = "size_differs"
    DRAWN_BEFORE_TURN = "drawn_before_exif_turn"
    BOX_REFUSED = "box_refused"
    SEVERAL_ANSWERS = "several_answers"
    NOT_REVIEWED = "not_reviewed"
    VAL_LIST = "validation_list"
    TEST_SPLIT = "test_split"
    VAL_UNLISTED = "validation_unlisted"
    DUPLICATE = "duplicate"
    LEAK = "same_as_validation"
    CLIPPED = "boxes_clipped"
    DOUBLES = "boxes_drawn_twice"
    REGION = "crowd_or_ignored"
    LISTED_AGAIN = "listed_again"
    SHAPE_CONVERTED = "shape_converted"
    CLASS_WITHOUT_BOX = "class_without_box"
    CLASSES_NEARLY_EQUAL = "classes_nearly_equal"
    EXIF_TURN = "exif_turn"
    FIRST_FRAME = "first_frame"
    MAYBE_UNLISTED = "maybe_not_found"
    TEXT_GUESSED = "read_all_the_same"

    @property
    def description(self) -> str:
        """The reason in words, for a list of examples."""
        return _TITLES[self]


_TITLES = {
    Reason.ENTRY_BROKEN: "entries that cannot be read",
    Reason.CLASS_BROKEN: "classes that cannot be used",
    Reason.STRAY_ANNOTATION: "annotations of images that the document does not list",
    Reason.IMAGE_NOT_FOUND: "listed images without a file",
    Reason.NAME_AMBIGUOUS: "names that fit several images",
    Reason.IMAGE_UNREADABLE: "images that cannot be used",
    Reason.COPY: "copies of images that were set aside",
    Reason.LINK_NOT_FOLLOWED: "links that were not followed (--follow-links)",
    Reason.SIZE_DIFFERS: "images of another size than annotated",
    Reason.DRAWN_BEFORE_TURN: "boxes drawn before the EXIF turn",
    Reason.BOX_REFUSED: "images with a box that cannot be used",
    Reason.SEVERAL_ANSWERS: "images with several different annotations",
    Reason.NOT_REVIEWED: "validation images listed without boxes (--unannotated empty keeps them)",
    Reason.VAL_LIST: "lines of the validation list without an image",
    Reason.TEST_SPLIT: "images of the test split (--test-split)",
    Reason.VAL_UNLISTED: "images of the validation folder that no annotation lists",
    Reason.DUPLICATE: "exact duplicates",
    Reason.LEAK: "pool images that are in the validation set",
    Reason.CLIPPED: "images with clipped boxes",
    Reason.DOUBLES: "images with boxes drawn twice",
    Reason.REGION: "images with crowd or ignored regions",
    Reason.LISTED_AGAIN: "images listed again",
    Reason.SHAPE_CONVERTED: "images with shapes taken as their bounding box",
    Reason.CLASS_WITHOUT_BOX: "classes without a box",
    Reason.CLASSES_NEARLY_EQUAL: "classes with nearly equal names",
    Reason.EXIF_TURN: "images turned by EXIF, where sizes cannot tell in which frame the boxes were drawn",
    Reason.FIRST_FRAME: "files with several pictures, of which the first is used",
    Reason.MAYBE_UNLISTED: "images that may be listed under other names",
    Reason.TEXT_GUESSED: "read all the same",
}


@dataclass(frozen=True, slots=True)
class ReportEntry:
    """One thing that was not as expected. ``item`` names files as the user does, never absolute."""

    code: Reason
    item: str
    reason: str
    image_id: str | None = None
    """Of a set-aside image that can be decoded: ``gleaner pool sync`` does not let it in either."""

    def as_json(self) -> dict[str, str]:
        """Return the entry for ``import_report.json``."""
        entry = {"item": self.item, "reason": self.reason, "code": self.code.value}
        return entry if self.image_id is None else {**entry, "image_id": self.image_id}


@dataclass
class ImportReport:
    """What an import met that was not as expected."""

    rejected: list[ReportEntry] = field(default_factory=list)
    """Not used: set aside because of a problem."""
    left_out: list[ReportEntry] = field(default_factory=list)
    """Not used, though nothing is wrong with it."""
    notes: list[ReportEntry] = field(default_factory=list)
    """Used, after something was corrected or decided."""
    refused_boxes: list[tuple[BoxFate, str, str]] = field(default_factory=list)
    """Boxes that were refused for what they are: fate, where, why."""

    def reject(self, code: Reason, item: str, reason: str, image_id: str | None = None) -> None:
        """Set something aside."""
        self.rejected.append(ReportEntry(code, printable(item), reason, image_id))

    def leave_out(self, code: Reason, item: str, reason: str) -> None:
        """Leave out something that is in order."""
        self.left_out.append(ReportEntry(code, printable(item), reason))

    def note(self, code: Reason, item: str, reason: str) -> None:
        """Say what was done about something that is used all the same."""
        self.notes.append(ReportEntry(code, printable(item), reason))

    def refuse_box(self, fate: BoxFate, item: str, reason: str) -> None:
        """Name a refused box."""
        self.refused_boxes.append((fate, printable(item), reason))


@dataclass(frozen=True)
class Account:
    """A number and the parts it is the sum of."""

    what: str
    total: int
    parts: Mapping[str, int]
    details: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What a part consists of."""

    @property
    def balances(self) -> bool:
        """Whether the parts add up to the total, and the details to their parts."""
        are_details_whole = all(sum(numbers.values()) == self.parts[part] for part, numbers in self.details.items())
        return sum(self.parts.values()) == self.total and are_details_whole

    def as_json(self) -> dict[str, object]:
        """Return the account for ``import_report.json``."""
        details = {part: dict(numbers) for part, numbers in self.details.items()}
        return {"total": self.total, "parts": dict(self.parts), "details": details}

    def describe(self) -> str:
        """Write the account as one line; parts of zero are left out."""
        parts = [self._part(name, number) for name, number in self.parts.items() if number]
        return f"{self.what}: {self.total:,} = {' + '.join(parts) or '0'}"

    def _part(self, name: str, number: int) -> str:
        inside = [f"{n:,} {part or 'without ending'}" for part, n in self.details.get(name, {}).items() if n]
        return f"{number:,} {name}" + (f" ({', '.join(inside)})" if inside else "")


def examples(entries: Iterable[Mapping[str, str]]) -> list[tuple[str, int, Sequence[Mapping[str, str]]]]:
    """Group entries of a report by reason: title, number and the first few of each, the most frequent first."""
    by_code: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for entry in entries:
        by_code[entry["code"]].append(entry)
    ordered = sorted(by_code.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(_title(code), len(found), found[:EXAMPLES_SHOWN]) for code, found in ordered]


def _title(code: str) -> str:
    if code in set(Reason):
        return Reason(code).description
    return f"boxes refused: {BoxFate[code.removeprefix('box_').upper()].words}"
