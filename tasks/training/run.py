"""The iterations of one training, with its checkpoints, and the unlabeled images, which are scored between them."""

import logging
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import pyarrow as pa

from detectron_ext.augmentation import Example
from detectron_ext.data import SemiSupervisedBatches, StepBatch
from detectron_ext.distributed import world_size
from detectron_ext.trainer import StepLog, TeacherStudentTrainer, TrainingDiverged
from detectron_ext.uncertainty_metrics import Floats
from tasks.data import schemas
from tasks.model.checkpoint import Checkpoint
from tasks.model.detector import ImageReader, to_examples
from tasks.params import StageParams
from tasks.params.training import TrainParams
from tasks.runtime.errors import GuardRailError
from tasks.runtime.stage_main import num_micro_batches
from tasks.storage import files
from tasks.training.image_weights import BurnInScores

log = logging.getLogger(__name__)
_PROGRESS_LINES = 12
_MAX_WORKERS = 16


class TrainingRun:
    """A trainer with its checkpoint and the log of all iterations so far."""

    def __init__(
        self, trainer: TeacherStudentTrainer, params: TrainParams, checkpoint: Checkpoint, logs: list[StepLog]
    ) -> None:
        """Begin, or go on where the checkpoint brought ``trainer``; ``logs`` are those up to there."""
        self.logs = logs
        self._trainer, self._params, self._checkpoint = trainer, params, checkpoint

    def train_until(self, stop: int, batches: SemiSupervisedBatches) -> None:
        """Run the iterations up to number ``stop``; none where they are done.

        Raises:
            GuardRailError: training left its bounds.
        """
        if self._trainer.iteration >= stop:
            return
        log_every = max(self._params.iterations // _PROGRESS_LINES, 1)
        read_ahead = batches.iterate(self._trainer.iteration, stop, num_workers(self._params.num_workers))
        with closing(read_ahead):
            for batch in read_ahead:
                self._train_on(batch, log_every)

    def _train_on(self, batch: StepBatch, log_every: int) -> None:
        try:
            entry = self._trainer.step(batch)
        except TrainingDiverged as error:
            raise GuardRailError("train", str(error), "Lower ssl.lambda_unsup or train.learning_rate.") from None
        self.logs.append(entry)
        if entry.iteration % log_every == 0:
            log.info(
                "train %d/%d  supervised %.3f  unsupervised %.3f  pseudo-boxes %.1f an image",
                entry.iteration,
                self._params.iterations,
                entry.loss_sup,
                entry.loss_unsup,
                entry.pseudo_boxes_per_image,
            )
        self._save_and_leave_if_asked(entry.iteration % self._params.checkpoint_every_iterations == 0)

    def score_once(
        self, images: Sequence[Example], read: ImageReader, params: StageParams, metric_weights_3: Floats
    ) -> dict[str, float]:
        """Return U_j of ``images`` by the teacher as it is now, or what the checkpoint holds of an earlier call.

        Once scored they are saved: a run that goes on later, with another teacher, weighs as this one.
        """
        if self._trainer.burn_in_uncertainty is None:
            model = params.model
            batch_size = max((params.train.labeled_batch_size + params.train.unlabeled_batch_size), 1)
            scores = BurnInScores(images, max(batch_size // num_micro_batches(), 1))
            log.info("train: the teacher scores %d unlabeled images", len(images))
            for turn in range(scores.num_turns):
                scores.score_chunk(
                    turn,
                    self._trainer.teacher,
                    read,
                    model,
                    params.scoring,
                    score_threshold=params.infer.score_threshold,
                    mixed_precision=params.train.mixed_precision,
                )
                self._save_and_leave_if_asked(is_due=False)
            self._trainer.burn_in_uncertainty = scores.uncertainty(metric_weights_3, params.scoring)
            self._save_and_leave_if_asked(is_due=True)
        return self._trainer.burn_in_uncertainty

    def _save_and_leave_if_asked(self, is_due: bool) -> None:
        self._checkpoint.save_and_leave_if_asked(self._trainer, self.logs, is_due=is_due)


def num_workers(setting: int | Literal["auto"]) -> int:
    """Return the number of processes that read images for this training process (``train.num_workers``)."""
    if setting != "auto":
        return setting
    shared = (len(os.sched_getaffinity(0)) - 1) // world_size()
    return min(max(shared, 1), _MAX_WORKERS)


def read_unlabeled(assembled: Path) -> list[Example]:
    """Read the images that take part without labels: the unlabeled pool, then the calibration images.

    Calibration images take part as the pool does, so that the teacher is as sure on them as on the pool, whose scores
    they calibrate. Their labels are not read.
    """
    pool = files.read_table(assembled / "unlabeled.parquet", schemas.UNLABELED)
    calibration = files.read_table(assembled / "calibration.parquet", schemas.ANNOTATED)
    return to_examples(pa.concat_tables([pool, calibration.select(schemas.UNLABELED.names)]))
