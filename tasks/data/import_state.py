"""Hold the state of one import: what each file turned out to be, what was set aside, what was counted."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.data.box_rules import BoxRules
from tasks.data.image_decoding import ImageProblem
from tasks.data.image_listing import ImageListing
from tasks.data.image_record import BoxColumns, ImageRecord
from tasks.data.images import ImageMetadata
from tasks.data.import_policy import ImportPolicy
from tasks.data.import_report import ImportReport, Reason
from tasks.data.paths import image_id_from_sha256

Metadata = Mapping[str, ImageMetadata | ImageProblem]


@dataclass
class ImportState:
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

    def note_frames(self, record: ImageRecord) -> None:
        """Point out that a file holds several pictures."""
        if record.metadata.num_frames > 1:
            text = f"it holds {record.metadata.num_frames} pictures, the first is used"
            self.report.note(Reason.FIRST_FRAME, record.file_name, text)
