"""The images that a training reads."""

from pathlib import Path

import pyarrow as pa

from detectron_ext.augmentation import Example
from tasks.data import schemas
from tasks.model.detector import to_examples
from tasks.storage import files


def read_unlabeled(assembled: Path) -> list[Example]:
    """Read the images that take part without labels: the unlabeled pool, then the calibration images.

    Calibration images take part as the pool does, so that the teacher is as sure on them as on the pool, whose scores
    they calibrate. Their labels are not read.
    """
    pool = files.read_table(assembled / "unlabeled.parquet", schemas.UNLABELED)
    calibration = files.read_table(assembled / "calibration.parquet", schemas.ANNOTATED)
    return to_examples(pa.concat_tables([pool, calibration.select(schemas.UNLABELED.names)]))
