"""The sections of ``params.yaml``, one frozen class each: unknown keys refused, no defaults.

Each field says its meaning, unit, range and source.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ClassName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]


class Section(BaseModel):
    """What all sections share."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelParams(Section):
    """The detector; train, evaluate and infer must build the same one."""

    architecture: str
    """``timm_fpn``: FPN on the timm ``backbone``; otherwise a Detectron2 YAML of a two-stage detector with FPN: a name
    of the model zoo (COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml) or a path inside the workspace. A YAML brings its own
    backbone, pyramid and anchors; the fields for those are then without effect."""
    backbone: str
    """Any timm model that supports ``features_only``."""
    pretrained_weights: str
    """``imagenet``: the ImageNet weights that come with Gleaner's dependencies (tf_efficientnet_lite0 only);
    ``none``: random; otherwise a file inside the workspace: of ``timm_fpn`` a timm state dict, of a YAML a Detectron2
    checkpoint (.pth or .pkl). Its content is not tracked: give other weights another name."""
    trainable_stages: NonNegativeInt
    """Backbone stages, counted from the output, that are trained; the ones below stay frozen."""
    fpn_channels: Annotated[int, Field(gt=0, multiple_of=32)]
    """Width of the feature pyramid; its group norm has 32 groups."""
    anchor_sizes_px: Annotated[list[PositiveFloat], Field(min_length=5, max_length=5)]
    """One size per pyramid level P2..P6, in pixels of the resized image."""
    anchor_aspect_ratios: Annotated[list[PositiveFloat], Field(min_length=1)]
    """Height over width."""
    short_side_px: PositiveInt
    """Images are resized to this short side, unless the long side would exceed ``long_side_px``."""
    long_side_px: PositiveInt
    nms_iou_threshold: Fraction
    """Boxes of one class overlapping more than this are one detection."""
    max_detections_per_image: PositiveInt

    @model_validator(mode="after")
    def _check_sides(self) -> Self:
        if self.long_side_px < self.short_side_px:
            raise ValueError(f"long_side_px is {self.long_side_px}, expected at least short_side_px")
        return self


class PoolParams(Section):
    """Where the images come from, and how they get here.

    Read by whatever opens images, and declared by no stage: it changes no result.
    """

    images_uri: str
    """Directory or s3:// prefix in which ``gleaner pool sync`` looks for new images; empty: the pool stays as it is."""
    follow_links: bool
    """Whether links to images and folders in a directory are followed."""
    cache_gib: PositiveFloat
    """Disk space for copies of images that lie in an object store; those used longest ago go first."""
    num_download_workers: PositiveInt
    """Images fetched at the same time."""


class PrepareParams(Section):
    """Checks on the pool's images."""

    min_image_side_px: PositiveInt
    """Images with a shorter side are set aside."""
    max_pixels: PositiveInt
    """Images with more pixels are set aside before they are decoded (decompression bombs)."""


class AssembleParams(Section):
    """Labels of all batches put together."""

    empty_images: Literal["keep", "drop"]
    """Whether images a person found empty take part in training, as pure background."""


class TrainParams(Section):
    """Schedule and optimizer (AdamW, linear warm-up, cosine decay)."""

    init_from: Literal["pretrained", "previous_round"]
    """Start from the backbone's weights, or from the previous round's teacher."""
    iterations: PositiveInt
    burn_in_iterations: NonNegativeInt
    """Supervised iterations before the teacher takes part (METHOD section 6)."""
    labeled_batch_size: PositiveInt
    unlabeled_batch_size: NonNegativeInt
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup_iterations: NonNegativeInt
    min_lr_ratio: Fraction
    """Learning rate at the end, as a fraction of ``learning_rate``."""
    grad_clip_norm: PositiveFloat
    checkpoint_every_iterations: PositiveInt
    num_workers: NonNegativeInt
    mixed_precision: bool
    """On CUDA; without effect on a CPU."""
    channels_last: bool

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.burn_in_iterations > self.iterations:
            raise ValueError(f"burn_in_iterations is {self.burn_in_iterations}, expected at most iterations")
        return self


class AugmentationParams(Section):
    """Weak and strong views of a training image."""

    flip_probability: Fraction
    """Horizontal flip; 0 where left and right mean something (text, digits)."""
    scale_jitter_frac: Annotated[float, Field(ge=0, lt=1)]
    """Both views are scaled by 1 plus or minus at most this."""
    strong_magnitude: Fraction
    """Of the strong view's color jitter, grey, blur and cut-out."""


class SslParams(Section):
    """Semi-supervised part of training (METHOD section 6, Eqs. 16-18)."""

    enabled: bool
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Teacher = decay * teacher + (1 - decay) * student, after every iteration."""
    lambda_unsup: NonNegativeFloat
    """Weight of the unsupervised loss; low on small data, a peer's users met NaN with 4."""
    rampup_iterations: NonNegativeInt
    """Iterations after burn-in over which lambda grows linearly from 0."""
    pseudo_label_threshold_mode: Literal["fixed", "adaptive"]
    """``adaptive`` lowers the threshold of classes whose mean pseudo-label score is lower (per-class EMA)."""
    pseudo_label_threshold: Fraction
    """Score a teacher's box needs to become a pseudo-label."""
    ignore_score_threshold: Fraction
    """From this score up to the threshold the teacher is unsure: neither object nor background. 1: it never is."""
    pseudo_label_box_loss: bool
    """Whether pseudo-boxes also train box regression; off in the paper's family of methods."""
    focal_gamma: NonNegativeFloat
    """Eq. 4; 1.5 as in Unbiased Teacher. 0 is cross entropy."""
    image_weighting: Literal["favor_uncertain", "favor_certain", "uniform"]
    """W_j = sigmoid(z_j), sigmoid(-z_j), or 1."""
    standardize_image_weights: bool
    """z_j is the standardized uncertainty instead of the uncertainty itself."""
    divergence_loss_ratio: PositiveFloat
    """Guard rail: running mean of unsupervised over supervised loss above this stops the run."""


class EvaluateParams(Section):
    """COCO mAP of teacher and student on the fixed validation set."""

    batch_size: PositiveInt
    score_threshold: Fraction


class InferParams(Section):
    """The teacher over the unlabeled pool."""

    batch_size: PositiveInt
    shard_size: PositiveInt
    """A killed run repeats at most one shard."""
    score_threshold: Fraction
    """Boxes below this take no part in the metrics."""


class ScoringParams(Section):
    """The three metrics (METHOD section 2, Eqs. 10-13)."""

    confidence: Literal["sum", "least_confidence"]
    entropy: Literal["sum", "mean"]
    normalize: Literal["quantile", "minmax", "max", "none"]
    no_detection_score: Literal["min", "median", "max"]
    """Score of an image without any detection: 0, the pool's median, or the largest."""


class DwaParams(Section):
    """Dynamic Weight Adjustment (METHOD section 3)."""

    mode: Literal["learned", "equal", "fixed", "entropy", "activeteacher"]
    fixed_weights: Annotated[list[NonNegativeFloat], Field(min_length=3, max_length=3)]
    """(w_C, w_E, w_O) of mode ``fixed``; must sum to 1."""
    min_training_samples: Annotated[int, Field(ge=4)]
    """Fewer pairs than this: equal weights (cold start)."""
    history_batches: PositiveInt
    """Batches, newest first: the images offered in them give the pairs."""
    cv_folds: Annotated[int, Field(ge=2)]
    """The pairs are split into this many parts; each part judges a network trained on the others."""
    focal_gamma: NonNegativeFloat
    """Eq. 4, of the realized loss the score must rank."""
    epochs: PositiveInt
    hidden_units: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat
    weight_variance_penalty: NonNegativeFloat
    """On the variance of the metric weights between images; large keeps them common to all images."""
    uniform_prior_penalty: NonNegativeFloat
    """On the distance of the mean metric weights from equal ones."""
    class_weight_max: Annotated[float, Field(ge=1)]
    """Bound on one class's weight; the mean over classes is 1."""

    @model_validator(mode="after")
    def _check_weights_sum(self) -> Self:
        if abs(sum(self.fixed_weights) - 1) > 1e-3:
            raise ValueError(f"fixed_weights sum to {sum(self.fixed_weights):.4g}, expected 1")
        return self


class BudgetParams(Section):
    """What one batch may cost."""

    unit: Literal["images", "boxes", "minutes"]
    amount: PositiveFloat
    minutes_per_box: NonNegativeFloat
    minutes_per_image: NonNegativeFloat
    """Opening and looking, whatever is there."""
    min_timed_annotations: Annotated[int, Field(ge=3)]
    """From so many answers with a measured time on, ``minutes_per_box`` and ``minutes_per_image`` are fitted to them;
    until then the two are used as given."""

    @model_validator(mode="after")
    def _check_costs(self) -> Self:
        if self.unit == "images" and self.amount < 1:
            raise ValueError(f"amount is {self.amount:g}, expected at least 1 image")
        if self.unit == "minutes" and self.minutes_per_image == 0:
            raise ValueError("minutes_per_image is 0, expected more: images without boxes would be free")
        return self


class SelectParams(Section):
    """Which images are asked for next."""

    strategy: Literal["uncertainty", "random", "entropy"]
    random_frac: Fraction
    """Share of the batch, in images, drawn uniformly from the whole pool: keeps DWA's pairs honest."""


class PreannotationParams(Section):
    """Pre-drawn boxes."""

    score_threshold: Fraction


class ReportParams(Section):
    """The HTML page."""

    thumbnails: NonNegativeInt


class NightlyParams(Section):
    """The nightly flow; read by no stage."""

    on_few_labels: Literal["skip", "proceed"]
    """With fewer newly finished images than ``min_new_labels``: leave, or train on what there is. Where every lease
    is over, or nothing is left to label, waiting would not help: the night then goes on with what there is."""
    min_new_labels: PositiveInt
    max_pending_images: PositiveInt
    """With this many images or more still at the annotators, a round offers no further batch."""
    stage_timeout_minutes: PositiveFloat
    """A stage that takes longer has failed: something hangs. What it has kept is kept, and the next night goes on
    from there."""
    alert_after_days_without_labels: PositiveFloat
    """With work out and no new label for so long, somebody is told that labels are running dry."""
    alert_when_batches_left: NonNegativeInt
    """The same with fewer images left in the pool than so many batches of the last size."""
