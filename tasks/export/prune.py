"""Prune a detector before it is exported: remove channels, then train a little on labels and pseudo-labels."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from detectron_ext.augmentation import AugmentationConfig, Example
from detectron_ext.data import SemiSupervisedBatches
from detectron_ext.losses import IGNORE_LABEL
from detectron_ext.meta_arch import PerImageRCNN
from detectron_ext.pruning import prune
from detectron_ext.pseudo_labels import ScoreThreshold
from detectron_ext.trainer import ImageWeighting, Schedule, TeacherStudentTrainer
from tasks.model.checkpoint import Checkpoint
from tasks.model.detector import ImageReader, default_device, detect_all, to_examples
from tasks.model.fingerprint import software_fingerprint
from tasks.params import StageParams
from tasks.params.training import TrainParams
from tasks.runtime.errors import UserError
from tasks.storage import files
from tasks.training.run import TrainingRun

SECTIONS = ("seed", "classes", "model", "train", "augmentation", "ssl", "evaluate", "export")
"""Sections of the parameters that pruning reads."""
MAX_PRUNE_FRAC = 0.9
_WARMUP_FRAC = 0.1
_STREAM = 7
"""Of the images that get pseudo-labels; other streams of the seed draw other things."""


@dataclass(frozen=True)
class PruneImages:
    """The images that a pruned detector is trained on."""

    root: Path
    """Folder that uris are relative to."""
    labeled: pa.Table
    """schemas.ANNOTATED."""
    unlabeled: pa.Table
    """schemas.UNLABELED."""


@dataclass(frozen=True)
class PrunedDetector:
    """A smaller detector, in eval mode on the CPU, and what was done to it."""

    model: PerImageRCNN
    record: dict[str, Any]
    """Of ``detectron_ext.pruning.PruningReport`` and the fine-tuning; goes into the metadata as it is."""


def require_prune_frac(prune_frac: float) -> None:
    """Check a fraction of channels.

    Raises:
        UserError: it is out of range.
    """
    if not 0 <= prune_frac < MAX_PRUNE_FRAC:
        problem = f"--prune is {prune_frac:g}, expected a fraction of at least 0 and below {MAX_PRUNE_FRAC}"
        raise UserError("gleaner export", problem)


def prune_detector(
    model: PerImageRCNN,
    params: StageParams,
    images: PruneImages,
    prune_frac: float,
    *,
    model_sha256: str,
    scratch: Path,
    on_step: Callable[[str], None] = lambda line: None,
) -> PrunedDetector:
    """Remove channels of a trained detector, and fine-tune what is left.

    It learns as in a supervised training, at full length of its own schedule, from people's labels and from the
    detections of ``model`` on unlabeled images; the labeled images are repeated until they are about half.

    Args:
        model: in eval mode; it is not changed.
        params: the sections ``SECTIONS``.
        images: to rank channels and to train on.
        prune_frac: of each layer's channels, in (0, ``MAX_PRUNE_FRAC``).
        model_sha256: digest of its file.
        scratch: checkpoints; a call with the same inputs goes on from the newest.
        on_step: called with a line of text before each step.

    Raises:
        UserError: there are no labeled images, or the detector has no channels that can go.
        GuardRailError: the fine-tuning left its bounds.
    """
    require_prune_frac(prune_frac)
    labeled = to_examples(images.labeled)
    if not labeled:
        raise UserError("labeled.parquet", "labeled images are 0, expected at least 1 to prune by")
    whole = copy.deepcopy(model).to(default_device())
    whole.roi_heads.box_predictor.focal_gamma = params.ssl.focal_gamma  # of the loss that it was trained with
    on_step("ranking channels")
    ranked = _batches(labeled, params, images)
    num_batches = math.ceil(params.export.prune_importance_images / params.train.labeled_batch_size)
    size_px = params.model.short_side_px, params.model.long_side_px
    try:
        pruned, report = prune(
            whole, prune_frac, [ranked[number].labeled for number in range(num_batches)], size_px, params.seed
        )
    except ValueError as error:
        raise UserError("gleaner export", f"--prune: {error}", "Export without it.") from None
    pseudo_labeled = _pseudo_label(whole, params, images, on_step) if params.export.prune_finetune_iterations else []
    key = _key(params, [model_sha256, prune_frac, [one.image_id for one in (*labeled, *pseudo_labeled)]])
    checkpoint = Checkpoint(scratch, key, {"device": default_device()})
    _finetune(pruned, params, images, (labeled, pseudo_labeled), checkpoint, on_step)
    record = {
        **asdict(report),
        "finetune_iterations": params.export.prune_finetune_iterations,
        "finetune_labeled_images": len(labeled) if params.export.prune_finetune_iterations else 0,
        "finetune_pseudo_labeled_images": len(pseudo_labeled),
        "pseudo_label_threshold": params.ssl.pseudo_label_threshold,
    }
    return PrunedDetector(pruned.cpu().eval(), record)


def _pseudo_label(
    model: PerImageRCNN, params: StageParams, images: PruneImages, on_step: Callable[[str], None]
) -> list[Example]:
    """Return the unlabeled images that fine-tuning has the time to see once, with the detections as labels.

    Images without a detection above the threshold are left out: nobody has said that they are empty.
    """
    unlabeled = to_examples(images.unlabeled)
    num_drawn = params.export.prune_finetune_iterations * params.train.labeled_batch_size
    order = np.random.default_rng([params.seed, _STREAM]).permutation(len(unlabeled))[:num_drawn]
    drawn = [unlabeled[index] for index in order]
    on_step(f"detecting on {len(drawn)} unlabeled images")
    read = ImageReader(images.root, [{"uri": one.uri, "image_id": one.image_id} for one in drawn])
    labeled: dict[str, Example] = {}
    for one, [found] in detect_all(
        [model], drawn, lambda one: read(one.uri), params.model,
        batch_size=params.evaluate.batch_size, mixed_precision=params.train.mixed_precision,
    ):  # fmt: skip
        is_label = found.scores >= params.ssl.pseudo_label_threshold
        is_used = is_label | (found.scores >= params.ssl.ignore_score_threshold)
        if is_label.any():
            class_ids = np.where(is_label, found.class_ids, IGNORE_LABEL)[is_used].astype(np.int64)
            labeled[one.image_id] = Example(
                one.image_id, one.uri, found.boxes_xyxy[is_used], class_ids, one.shape_class
            )
    return [labeled[one.image_id] for one in drawn if one.image_id in labeled]


def _batches(examples: Sequence[Example], params: StageParams, images: PruneImages) -> SemiSupervisedBatches:
    read = ImageReader(images.root, [{"uri": one.uri, "image_id": one.image_id} for one in examples])
    augmentation = AugmentationConfig(
        params.model.short_side_px, params.model.long_side_px, **params.augmentation.model_dump()
    )
    batch_sizes = params.train.labeled_batch_size, 0
    return SemiSupervisedBatches(
        examples, [], read, augmentation, batch_sizes=batch_sizes, burn_in_iterations=0, seed=params.seed
    )


def _finetune(
    model: PerImageRCNN,
    params: StageParams,
    images: PruneImages,
    examples: tuple[list[Example], list[Example]],
    checkpoint: Checkpoint,
    on_step: Callable[[str], None],
) -> None:
    """Train ``model`` in place, with all its parameters; the same inputs give the same network on one processor."""
    iterations = params.export.prune_finetune_iterations
    if not iterations:
        return
    labeled, pseudo_labeled = examples
    repeated = labeled * max(round(len(pseudo_labeled) / len(labeled)), 1)
    on_step(
        f"training {iterations} iterations on {len(labeled)} labeled and {len(pseudo_labeled)} pseudo-labeled images"
    )
    # This process runs threads, which a process that reads ahead would be forked from; and it is short.
    train = params.train.model_copy(update={"iterations": iterations, "num_workers": 0})
    model.train()
    trainer = TeacherStudentTrainer(
        model,
        copy.deepcopy(model),
        _schedule(train),
        ImageWeighting({}, "uniform"),  # without effect: no image comes as an unlabeled one
        ScoreThreshold("fixed", params.ssl.pseudo_label_threshold, len(params.classes)),
        pseudo_label_box_loss=True,
        mixed_precision=train.mixed_precision,
        seed=params.seed,
    )
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(model.device.type == "cpu", warn_only=True)
    try:
        run = TrainingRun(trainer, train, checkpoint, checkpoint.load(trainer))
        run.train_until(iterations, _batches([*repeated, *pseudo_labeled], params, images))
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
    checkpoint.delete()


def _schedule(train: TrainParams) -> Schedule:
    """Of a supervised training: burn-in to the end, learning rates as in ``train``."""
    return Schedule(
        iterations=train.iterations,
        burn_in=train.iterations,
        warmup=min(train.warmup_iterations, math.ceil(train.iterations * _WARMUP_FRAC)),
        rampup=0,
        learning_rate=train.learning_rate,
        min_lr_ratio=train.min_lr_ratio,
        backbone_lr_factor=train.backbone_lr_factor,
        weight_decay=train.weight_decay,
        grad_clip_norm=train.grad_clip_norm,
        lambda_unsup=0.0,
        ema_decay=0.0,
        divergence_loss_ratio=math.inf,
    )


def _key(params: StageParams, inputs: list[Any]) -> str:
    """Digest of everything that decides the result, so that a checkpoint of other inputs is never used."""
    sections = {
        name: getattr(params, name).model_dump() for name in ("model", "train", "augmentation", "ssl", "export")
    }
    return files.sha256_json([sections, params.seed, params.classes, inputs, software_fingerprint(Path(__file__))])
