"""The images that two models are run on, divided into pieces, each with its file."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tasks.data.schemas import DETECTIONS
from tasks.storage import files

IMAGES = pa.schema([("image_id", pa.string()), ("uri", pa.string())])
_PIECE_IMAGES = 128


class ShadowJob(BaseModel):
    """What to detect."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    """Folder that uris are relative to."""
    images: Path
    """``IMAGES``."""
    params: Path
    """Today's parameters, with the section ``model`` of the champion."""
    champion: Path
    """State file."""
    challenger: Path
    """State file of the same architecture."""
    out: Path
    """Folder of the pieces."""

    def pieces(self) -> list[tuple[pa.Table, Path]]:
        """Return the rows of each piece, and the file of its detections."""
        images = files.read_table(self.images, IMAGES)
        firsts = range(0, images.num_rows, _PIECE_IMAGES)
        chunks = [images.take(list(range(first, min(first + _PIECE_IMAGES, len(images))))) for first in firsts]
        return [(chunk, self.out / f"piece-{number:06d}.parquet") for number, chunk in enumerate(chunks)]


def read_detections(job: ShadowJob, columns: Sequence[str]) -> pa.Table:
    """Return columns of ``DETECTIONS`` of all images."""
    empty = DETECTIONS.empty_table().select(list(columns))
    tables = [files.read_table(path, DETECTIONS, columns=columns) for _, path in job.pieces()]
    return pa.concat_tables([empty, *tables])
