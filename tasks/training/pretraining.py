"""Train the backbone on images without labels before the first iteration (docs/method.md#pretraining)."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from detectron_ext.augmentation import AugmentationConfig, Example
from detectron_ext.distributed import rank, world_size
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.pretraining import BackbonePretrainer, PretrainingLog, PretrainingSchedule
from detectron_ext.pretraining_views import PretrainingBatches
from detectron_ext.trainer import TrainingDiverged
from tasks.model.checkpoint import RunCheckpoint
from tasks.model.detector import ImageReader
from tasks.model.fingerprint import software_fingerprint
from tasks.params import StageParams
from tasks.params.training import TrainParams
from tasks.runtime.errors import GuardRailError, UserError
from tasks.runtime.stage_main import num_micro_batches
from tasks.storage import files
from tasks.training.run import num_workers

log = logging.getLogger(__name__)
_PROGRESS_LINES = 12
_TAIL_FRAC = 0.2
_SETTINGS = {"backbone_lr_factor", "weight_decay", "grad_clip_norm", "mixed_precision", "channels_last"}
"""Parameters of section train that decide the result, besides those that begin with ``pretrain_``."""


class PretrainingCheckpoint(RunCheckpoint[PretrainingLog]):
    """The state of pretraining. It stays when the round is finished: the next one may start from the same backbone."""

    file_name = "pretraining.pth"
    log_type = PretrainingLog
    phase = " of pretraining"


@dataclass(frozen=True)
class Pretraining:
    """What pretraining did."""

    logs: list[PretrainingLog]
    """Of all iterations; empty where the round starts from a teacher."""
    num_images: int = 0
    batch_size: int = 0
    hardware_changed: bool = False
    exit_requested: bool = False

    def summary(self) -> dict[str, Any]:
        """Return the entry of summary.json; losses are means over the first and the last fifth of the iterations."""
        if not self.logs:
            return {"iterations": 0, "reason": "the round starts from the teacher of the round before"}
        size = max(int(_TAIL_FRAC * len(self.logs)), 1)

        def mean(name: str, entries: list[PretrainingLog]) -> float:
            return round(float(np.mean([getattr(entry, name) for entry in entries])), 6)

        return {
            "iterations": len(self.logs),
            "images": self.num_images,
            "batch_size": self.batch_size,
            "first_loss": mean("loss", self.logs[:size]),
            "last_loss": mean("loss", self.logs[-size:]),
            "embedding_spread": mean("embedding_spread", self.logs[-size:]),
        }

    def write_curves(self, out: Path) -> None:
        """Write the losses by iteration."""
        if self.logs:
            files.write_table(out / "pretraining.parquet", pa.Table.from_pylist([asdict(entry) for entry in self.logs]))


def pretrain_backbone(
    detector: PerImageRCNN,
    images: Sequence[Example],
    read: ImageReader,
    augmentation: AugmentationConfig,
    params: StageParams,
    scratch: Path,
    hardware: dict[str, Any],
) -> Pretraining:
    """Train the backbone of a new detector in place, or take over what ``scratch`` holds of the same inputs.

    Args:
        detector: as it would start training.
        images: of the pool and the labeled ones; their labels are not used.
        read: gives their pixels.
        augmentation: size and strength of the views.
        params: sections seed, model, train, augmentation.
        scratch: where the state is kept.
        hardware: as ``RunCheckpoint`` has it.

    Raises:
        UserError: every stage of the backbone is frozen.
        GuardRailError: loss or gradients are not finite, or all regions came to look alike.
    """
    unlabeled = sorted((_without_labels(image) for image in images), key=lambda image: image.image_id)
    train = params.train
    key = _input_key(params, unlabeled, _digest(detector.backbone))
    try:
        run = BackbonePretrainer(
            detector,
            _schedule(train),
            train.mixed_precision,
            params.seed,
            num_micro_batches=num_micro_batches(),
        )
    except ValueError as error:
        raise UserError("params.yaml", f"train.pretrain_iterations is {train.pretrain_iterations}: {error}") from None
    checkpoint = PretrainingCheckpoint(scratch, key, hardware)
    logs = checkpoint.load(run)
    if not run.is_finished:
        checkpoint.exit_on_signal()
        batches = PretrainingBatches(
            unlabeled,
            read,
            augmentation,
            batch_size=train.pretrain_batch_size,
            seed=params.seed,
            rank=rank(),
            world_size=world_size(),
        )
        _run(run, batches, train, checkpoint, logs)
    return Pretraining(
        logs, len(unlabeled), train.pretrain_batch_size, checkpoint.hardware_changed, checkpoint.exit_requested
    )


def _run(
    run: BackbonePretrainer,
    batches: PretrainingBatches,
    train: TrainParams,
    checkpoint: PretrainingCheckpoint,
    logs: list[PretrainingLog],
) -> None:
    """Run the iterations that are left."""
    total = train.pretrain_iterations
    log_every = max(total // _PROGRESS_LINES, 1)
    with closing(batches.iterate(run.iteration, total, num_workers(train.num_workers))) as read_ahead:
        for batch in read_ahead:
            try:
                entry = run.step(batch)
            except TrainingDiverged as error:
                fix = "Lower train.pretrain_learning_rate, or set train.pretrain_iterations to 0."
                raise GuardRailError("train", str(error), fix) from None
            logs.append(entry)
            if entry.iteration % log_every == 0:
                text = "train pretraining %d/%d  loss %.3f  spread %.2f"
                log.info(text, entry.iteration, total, entry.loss, entry.embedding_spread)
            is_due = run.is_finished or entry.iteration % train.checkpoint_every_iterations == 0
            checkpoint.save_and_leave_if_asked(run, logs, is_due=is_due)


def _without_labels(image: Example) -> Example:
    return replace(image, boxes_xyxy=np.zeros((0, 4), np.float32), class_ids=np.zeros(0, np.int64))


def _schedule(train: TrainParams) -> PretrainingSchedule:
    return PretrainingSchedule(
        iterations=train.pretrain_iterations,
        learning_rate=train.pretrain_learning_rate,
        backbone_lr_factor=train.backbone_lr_factor,
        weight_decay=train.weight_decay,
        grad_clip_norm=train.grad_clip_norm,
    )


def _input_key(params: StageParams, images: Sequence[Example], start_digest: str) -> str:
    """Digest of everything that decides the backbone; labels and classes do not, so rounds can share it."""
    train = {
        name: value
        for name, value in params.train.model_dump().items()
        if name in _SETTINGS or name.startswith("pretrain_")
    }
    return files.sha256_json(
        [
            {"train": train, "model": params.model.model_dump(), "augmentation": params.augmentation.model_dump()},
            params.seed,
            [(image.image_id, image.shape_class) for image in images],
            start_digest,
            software_fingerprint(Path(__file__)),
        ]
    )


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
