"""Initial parameters by hardware: what ``gleaner init --profile`` writes over the repository's ``params.yaml``.

A profile is a list of ``section.key=value``, so that the campaign's file shows all of it and ``--set`` changes it.
"""

from typing import Literal, get_args

Profile = Literal["cpu", "gpu"]
PROFILES: tuple[Profile, ...] = get_args(Profile)

CPU_OVERRIDES = (
    "model.short_side_px=256",
    "model.long_side_px=512",
    "augmentation.flip_probability=0.5",
    "train.init_from=pretrained",  # the demo goes on from the previous teacher, to end in minutes
    "train.iterations=300",
    "train.burn_in_iterations=200",
    # For 100 iterations with unlabeled images; the demo has 40.
    "ssl.ema_decay=0.98",
    "ssl.rampup_iterations=40",
)
"""For a user's own images on a CPU, where the demo's small drawn digits need others: a night of minutes."""

DEMO_OVERRIDES = (
    "model.trainable_stages=2",
    "train.iterations=165",
    "train.burn_in_iterations=145",
)
"""For the demo: three rounds in minutes on two cores. Gradients through half the backbone cost a third of a step."""

_IMAGES_PER_GPU = 8
_LEARNING_RATE_PER_IMAGE = 1.25e-5
"""AdamW at 1e-4 for 8 labeled images; in proportion to the batch (linear scaling, arXiv:1706.02677)."""

_GPU_OVERRIDES = (
    "model.architecture=COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
    "model.pretrained_weights=detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl"
    "#sha256=3c25caca37baabbff3e22cc9eb0923db165a0c18b867871a3bf3570bac9b7ef0",
    "model.short_side_px=800",
    "model.long_side_px=1333",
    "model.max_detections_per_image=100",
    "augmentation.flip_probability=0.5",
    "train.init_from=pretrained",
    "train.iterations=12000",
    "train.burn_in_iterations=4000",
    "train.warmup_iterations=500",
    "train.min_lr_ratio=0.01",
    "train.checkpoint_every_iterations=500",
    "train.mixed_precision=true",
    "train.channels_last=true",
    "ssl.ema_decay=0.999",
    "ssl.rampup_iterations=1000",
    "evaluate.batch_size=16",
    "infer.batch_size=16",
    "infer.shard_size=4096",
)


def profile_overrides(profile: Profile, *, num_gpus: int) -> tuple[str, ...]:
    """Return the ``section.key=value`` of a profile, in the order they are applied.

    Args:
        profile: ``cpu``: a small detector, nights of minutes; ``gpu``: a ResNet-50 FPN that starts from COCO weights,
            at full resolution, nights of hours.
        num_gpus: the batches of ``gpu`` are for so many, at least one.
    """
    if profile == "cpu":
        return CPU_OVERRIDES
    gpus = max(num_gpus, 1)
    batch_size = _IMAGES_PER_GPU * gpus
    return (
        *_GPU_OVERRIDES,
        f"train.labeled_batch_size={batch_size}",
        f"train.unlabeled_batch_size={batch_size}",
        f"train.learning_rate={_LEARNING_RATE_PER_IMAGE * batch_size:.6g}",
    )
