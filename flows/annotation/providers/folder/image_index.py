"""What outside tools call the images of a batch, and the annotators' own list of what they have finished."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from flows.annotation.providers.folder.parsed import UnsupportedFormatError
from flows.annotation.providers.folder.writers import OfferedImage

REVIEW_FILE = "reviewed.csv"
"""One line an image somebody has finished: ``image`` is enough, ``*`` means all of the batch."""
_COLUMNS = ("image", "status", "annotator", "seconds_spent", "finished_at")


class ImageIndex:
    """From a name in a file to the image id. Names are looked up, never opened."""

    def __init__(self, offered: Iterable[OfferedImage]) -> None:
        """Learn ids, file names and uris, with and without folder and ending; what fits two images fits none."""
        self._id_by_name: dict[str, str | None] = {}
        for image in offered:
            names = {image.task.image_id, image.file_name, image.task.uri}
            for name in {alias for full in names for alias in _aliases(full)}:
                image_id = self._id_by_name.setdefault(name, image.task.image_id)
                if image_id != image.task.image_id:
                    self._id_by_name[name] = None

    def find(self, name: str) -> str | None:
        """The image id, or None; a name that climbs out of its folder means nothing."""
        clean = name.replace("\\", "/")
        if ".." in PurePosixPath(clean).parts:
            return None
        return next((found for alias in _aliases(clean) if (found := self._id_by_name.get(alias))), None)

    def all_ids(self) -> set[str]:
        """Every image of the batch."""
        return {image_id for image_id in self._id_by_name.values() if image_id}


def _aliases(name: str) -> list[str]:
    """The name as it is, then its last part, then that without its ending."""
    pure = PurePosixPath(name)
    return [name, pure.name, pure.stem]


@dataclass(frozen=True)
class ReviewMark:
    """One line of ``reviewed.csv``."""

    image: str
    status: str | None
    annotator: str | None
    seconds_spent: float | str | None
    finished_at: str | None


def read_review_csv(content: bytes) -> Iterator[ReviewMark]:
    """The lines of a ``reviewed.csv``; comma, semicolon or tab between the columns.

    Raises:
        NotUnderstoodError: no column ``image``, or columns nobody knows.
    """
    text = content.decode("utf-8-sig", "replace")
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    columns = [(name or "").strip() for name in rows.fieldnames or ()]
    unknown = [name for name in columns if name not in _COLUMNS]
    if "image" not in columns or unknown:
        raise UnsupportedFormatError(f"the columns are {columns}, expected image and maybe {', '.join(_COLUMNS[1:])}")
    rows.fieldnames = columns
    try:
        for row in rows:
            cells = {key: (row.get(key) or "").strip() or None for key in _COLUMNS}
            if cells["image"]:
                yield ReviewMark(
                    cells["image"], cells["status"], cells["annotator"], _number_or_text(cells["seconds_spent"]),
                    cells["finished_at"],
                )  # fmt: skip
    except csv.Error as error:
        raise UnsupportedFormatError(f"the content is no CSV ({error})") from None


def _number_or_text(text: str | None) -> float | str | None:
    """A number where it is one; otherwise the text, for the door to refuse."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
