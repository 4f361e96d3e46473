"""The form every importer reads into, and the book of what it could not use."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tasks.data.images import ImageMetadata
from tasks.data.schemas import Box, Quarantined
from tasks.runtime.errors import UserError


@dataclass(frozen=True)
class ImageRecord:
    """One decoded image file and what the user's annotations say about it."""

    file_name: str
    """Relative to the images folder, with forward slashes: the user's own name of the image."""
    path: Path | str
    """A local file, or the s3 uri of an object, which stays where it is."""
    metadata: ImageMetadata
    boxes: tuple[Box, ...] | None
    """None: no annotation entry at all. Empty: somebody looked, and nothing was there."""


@dataclass
class ImportReport:
    """What an import met that was not as expected. ``item`` names files as the user does, never absolute."""

    rejected: list[Quarantined] = field(default_factory=list)
    """Not used."""
    notes: list[Quarantined] = field(default_factory=list)
    """Used, after something was corrected or decided."""
    clipped_boxes: int = 0
    rejected_images: set[str] = field(default_factory=set)
    """File names of the images set aside, so that they are not taken for images without an entry."""

    def reject(self, item: str, reason: str) -> None:
        """Set something aside that is not an image."""
        self.rejected.append(Quarantined(item=item, reason=reason))

    def reject_image(self, file_name: str, reason: str) -> None:
        """Set an image aside; only its first problem is kept, so that counts are counts of images."""
        if file_name not in self.rejected_images:
            self.rejected_images.add(file_name)
            self.reject(file_name, reason)

    def note(self, item: str, reason: str) -> None:
        """Say what was done about something that is used all the same."""
        self.notes.append(Quarantined(item=item, reason=reason))

    def merge(self, other: "ImportReport") -> None:
        """Add what another import met; ``rejected_images`` stays: the names may be those of another folder."""
        self.rejected += other.rejected
        self.notes += other.notes
        self.clipped_boxes += other.clipped_boxes

    def note_clipped(self, file_name: str, boxes: int) -> None:
        """Count boxes of one image that were clipped by a pixel or less."""
        if boxes:
            self.clipped_boxes += boxes
            self.note(file_name, f"{boxes} boxes at most 1 px outside the image, clipped")


@dataclass(frozen=True)
class ImportResult:
    """One annotation source, read."""

    records: tuple[ImageRecord, ...]
    """Sorted by file name, no name twice."""
    report: ImportReport


def finish_import(source: Path, records: Iterable[ImageRecord], report: ImportReport) -> ImportResult:
    """Close an import.

    Raises:
        UserError: no image is left.
    """
    usable = tuple(sorted((r for r in records if r.file_name not in report.rejected_images), key=lambda r: r.file_name))
    if not usable:
        first = report.rejected[0] if report.rejected else Quarantined(item=source.name, reason="no entries")
        problem = f"usable images are 0 of {len(report.rejected)}, expected at least 1"
        raise UserError(source, problem, f"The first one set aside is {first.item}: {first.reason}.")
    return ImportResult(usable, report)
