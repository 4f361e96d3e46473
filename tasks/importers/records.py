"""The form every importer reads into, and the book of what it could not use."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tasks.contracts import Box, Quarantined
from tasks.errors import UserError
from tasks.images import ImageFacts


@dataclass(frozen=True)
class ImageRecord:
    """One decoded image file and what the user's annotations say about it."""

    file_name: str
    """Relative to the images folder, with forward slashes: the user's own name of the image."""
    path: Path | str
    """A local file, or the s3 uri of an object, which stays where it is."""
    facts: ImageFacts
    boxes: tuple[Box, ...] | None
    """None: no annotation entry at all. Empty: somebody looked, and nothing was there."""


@dataclass
class Findings:
    """What an import met that was not as expected. ``where`` names files as the user does, never absolute."""

    set_aside: list[Quarantined] = field(default_factory=list)
    """Not used."""
    notes: list[Quarantined] = field(default_factory=list)
    """Used, after something was corrected or decided."""
    clipped_boxes: int = 0
    refused: set[str] = field(default_factory=set)
    """File names of the images set aside, so that they are not taken for images without an entry."""

    def refuse(self, where: str, reason: str) -> None:
        """Set something aside that is not an image."""
        self.set_aside.append(Quarantined(where=where, reason=reason))

    def refuse_image(self, file_name: str, reason: str) -> None:
        """Set an image aside; only its first problem is kept, so that counts are counts of images."""
        if file_name not in self.refused:
            self.refused.add(file_name)
            self.refuse(file_name, reason)

    def note(self, where: str, reason: str) -> None:
        """Say what was done about something that is used all the same."""
        self.notes.append(Quarantined(where=where, reason=reason))

    def absorb(self, other: "Findings") -> None:
        """Add what another import met; ``refused`` stays: the names may be those of another folder."""
        self.set_aside += other.set_aside
        self.notes += other.notes
        self.clipped_boxes += other.clipped_boxes

    def note_clipped(self, file_name: str, boxes: int) -> None:
        """Count boxes of one image that were clipped by a pixel or less."""
        if boxes:
            self.clipped_boxes += boxes
            self.note(file_name, f"{boxes} boxes at most 1 px outside the image, clipped")


@dataclass(frozen=True)
class Imported:
    """One annotation source, read."""

    records: tuple[ImageRecord, ...]
    """Sorted by file name, no name twice."""
    findings: Findings


def imported(source: Path, records: Iterable[ImageRecord], findings: Findings) -> Imported:
    """Close an import.

    Raises:
        UserError: no image is left.
    """
    usable = tuple(sorted((r for r in records if r.file_name not in findings.refused), key=lambda r: r.file_name))
    if not usable:
        first = findings.set_aside[0] if findings.set_aside else Quarantined(where=source.name, reason="no entries")
        problem = f"usable images are 0 of {len(findings.set_aside)}, expected at least 1"
        raise UserError(source, problem, f"The first one set aside is {first.where}: {first.reason}.")
    return Imported(usable, findings)
