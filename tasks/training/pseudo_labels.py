"""Which detections of the teacher become pseudo-labels: thresholds by class, and which classes take part."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from detectron_ext.pseudo_label_precision import ClassPrecision, assess_class
from detectron_ext.pseudo_labels import ScoreThreshold
from tasks.data import schemas
from tasks.data.detection_outcomes import returned_outcomes
from tasks.params.training import SslParams
from tasks.storage import files


def known_outcomes(warm_start: Path, labels: Path, detections_at_selection: Path, num_batches: int) -> pa.Table:
    """Read the detections with a known outcome: of the calibration images, and of images that came back."""
    tables = [returned_outcomes(labels, detections_at_selection, num_batches)]
    calibration = warm_start / "calibration_outcomes.parquet"
    if calibration.is_file():
        tables.append(files.read_table(calibration, schemas.OUTCOMES))
    return pa.concat_tables(tables)


def assess_classes(outcomes: pa.Table, classes: Sequence[str], ssl: SslParams) -> dict[str, ClassPrecision]:
    """Choose the threshold of every class, and whether it takes part (docs/method.md#precision)."""
    names = outcomes["class_name"].to_numpy(zero_copy_only=False)
    scores, right = outcomes["score"].to_numpy(), outcomes["is_right"].to_numpy(zero_copy_only=False).astype(bool)
    return {
        name: assess_class(
            scores[names == name],
            right[names == name],
            fixed_threshold=ssl.pseudo_label_threshold,
            target_precision=ssl.pseudo_label_precision if ssl.pseudo_label_threshold_mode == "precision" else None,
            min_precision=ssl.min_precision,
            min_terms=ssl.min_precision_terms,
        )
        for name in classes
    }


def score_threshold(assessed: Mapping[str, ClassPrecision], ssl: SslParams) -> ScoreThreshold:
    """Make the trainer's thresholds from what was measured."""
    return ScoreThreshold(
        ssl.pseudo_label_threshold_mode,
        ssl.pseudo_label_threshold,
        len(assessed),
        ignore_score_threshold=ssl.ignore_score_threshold,
        measured_thresholds={index: one.threshold for index, one in enumerate(assessed.values()) if one.is_measured},
        excluded_classes=[index for index, one in enumerate(assessed.values()) if not one.takes_part],
    )


def pseudo_label_summary(assessed: Mapping[str, ClassPrecision], ssl: SslParams, num_unlabeled: int) -> dict[str, Any]:
    """Describe for the report which classes take part, and why none does where none does."""
    excluded = [name for name, one in assessed.items() if not one.takes_part]
    reason = ""
    if not ssl.enabled:
        reason = "ssl.enabled is false"
    elif not num_unlabeled:
        reason = "there is no unlabeled image, or train.unlabeled_batch_size is 0"
    elif len(excluded) == len(assessed):
        reason = "the measured precision of no class's pseudo-labels is high enough"
    rounded = {
        name: {key: round(value, 6) if isinstance(value, float) else value for key, value in one._asdict().items()}
        for name, one in assessed.items()
    }
    return {"takes_part": not reason, "reason": reason, "excluded_classes": excluded, "classes": rounded}
