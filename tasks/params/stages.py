"""The sections of ``params.yaml``, one frozen class each: unknown keys refused, no defaults.

Each field says its meaning, unit, range and source.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks.runtime.extensions import ValueNotAllowedError, name_or_class_path

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
READY_STRATEGY_NAMES = (
    "least_confident",
    "margin",
    "localization",
    "committee",
    "rarity",
    "novelty",
    "boundary",
    "failures",
)
STRATEGY_NAMES = (
    *("uncertainty", "random", "entropy", "coreset", "value_per_minute", "composite", "portfolio"),
    *READY_STRATEGY_NAMES,
)
PortfolioArm = Literal[
    "uncertainty",
    "random",
    "entropy",
    "coreset",
    "value_per_minute",
    "composite",
    "least_confident",
    "margin",
    "localization",
    "committee",
    "rarity",
    "novelty",
    "boundary",
    "failures",
]
ObjectiveName = Literal[
    "uncertainty",
    "confidence",
    "entropy",
    "overlap",
    "cheapness",
    "least_confident",
    "margin",
    "localization",
    "committee",
    "rarity",
    "novelty",
    "boundary",
    "failures",
    "diversity",
]
MIN_TILE_SIDE_PX = 64
ClassName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]


WEIGHTS_ADDRESS = re.compile(r"(?P<scheme>https|detectron2)://(?P<path>[^\s#]+)#sha256=(?P<sha256>[0-9a-f]{64})")
"""A weights file to fetch, and the digest that it must have."""


class Section(BaseModel):
    """Settings that all sections share: frozen, unknown keys refused, no conversion between types."""

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
    ``none``: random; otherwise a PyTorch file or a pickle of arrays (.pkl): a path inside the workspace, whose content
    is not tracked (give other weights another name), or ``https://HOST/PATH#sha256=DIGEST`` or, for Detectron2's model
    zoo, ``detectron2://PATH#sha256=DIGEST``, fetched once. Of ``timm_fpn`` a timm state dict or a detector of
    Gleaner's, of a YAML a Detectron2 checkpoint; layers of another shape start anew. Nothing in the file is run."""
    trainable_stages: NonNegativeInt
    """Backbone stages, counted from the output, that are trained; the ones below stay frozen."""
    fpn_channels: Annotated[int, Field(gt=0, multiple_of=32)]
    """Width of the feature pyramid; its group norm has 32 groups."""
    anchor_sizes_px: Annotated[list[PositiveFloat], Field(min_length=5, max_length=5)]
    """One size per pyramid level P2..P6, in pixels of the resized image."""
    anchor_aspect_ratios: Annotated[list[PositiveFloat], Field(min_length=1)]
    """Height over width."""
    short_side_px: PositiveInt
    """Short side of a resized image, in pixels; smaller where the long side would exceed ``long_side_px``."""
    long_side_px: PositiveInt
    """Upper bound on the long side of a resized image, in pixels; at least ``short_side_px``."""
    nms_iou_threshold: Fraction
    """Of two boxes of one class with a larger IoU, the one with the lower score is removed."""
    max_detections_per_image: PositiveInt
    """Boxes kept per image after non-maximum suppression, by falling score; of a picture that is cut, per tile."""
    tile_side_px: NonNegativeInt
    """Pictures with a longer side are cut into square tiles of this side, in pixels of the original, at least 64; each
    is resized like an image, so that small objects stay large enough (docs/method.md#tiles). 0: none is cut."""
    tile_overlap_frac: Annotated[float, Field(ge=0, le=0.75)]
    """Share of its side that a tile has in common with the next, at least; objects up to that size lie whole in a tile.
    Without effect where ``tile_side_px`` is 0."""
    tile_with_whole: bool
    """Whether a picture that is cut is seen as a whole as well, which finds what is larger than a tile. Without effect
    where ``tile_side_px`` is 0."""

    @field_validator("pretrained_weights")
    @classmethod
    def _check_weights_address(cls, text: str) -> str:
        if "://" in text and WEIGHTS_ADDRESS.fullmatch(text) is None:
            raise ValueNotAllowedError("https:// or detectron2://, a path, and #sha256= with 64 hex digits")
        return text

    @model_validator(mode="after")
    def _check_sides(self) -> Self:
        if self.long_side_px < self.short_side_px:
            raise ValueError(f"long_side_px is {self.long_side_px}, expected at least short_side_px")
        if 0 < self.tile_side_px < MIN_TILE_SIDE_PX:
            raise ValueError(f"tile_side_px is {self.tile_side_px}, expected 0 or at least {MIN_TILE_SIDE_PX}")
        return self


class PoolParams(Section):
    """Where the images come from, and how they are copied to this machine.

    Read by the code that opens images, and declared by no stage, because it changes no result.
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
    max_pixels: Annotated[int, Field(gt=0, le=500_000_000)]
    """Images with more pixels are set aside before they are decoded, since a small file can hold a huge image."""


class AssembleParams(Section):
    """How the labels of all batches are joined."""

    empty_images: Literal["keep", "drop"]
    """Whether images in which a person found no object take part in training, as background only."""


class TrainParams(Section):
    """Schedule and optimizer (AdamW, linear warm-up, cosine decay)."""

    init_from: Literal["pretrained", "previous_round"]
    """Start from the backbone's weights, or from the previous round's teacher."""
    iterations: PositiveInt
    """Optimizer steps of one training, burn-in included."""
    burn_in_iterations: NonNegativeInt
    """Supervised iterations before the teacher takes part, at most ``iterations`` (docs/method.md#training)."""
    labeled_batch_size: PositiveInt
    """Labeled images per iteration."""
    unlabeled_batch_size: NonNegativeInt
    """Unlabeled images per iteration after burn-in. 0: training is supervised throughout."""
    learning_rate: PositiveFloat
    """Largest learning rate, reached at the end of the warm-up (docs/method.md#eq-21)."""
    backbone_lr_factor: Annotated[float, Field(gt=0, le=1)]
    """The pretrained backbone's learning rate, as a fraction of ``learning_rate``."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay of AdamW."""
    warmup_iterations: NonNegativeInt
    """Iterations over which the learning rate grows linearly to ``learning_rate``."""
    min_lr_ratio: Fraction
    """Learning rate at the end, as a fraction of ``learning_rate`` (docs/method.md#eq-21)."""
    grad_clip_norm: PositiveFloat
    """Upper bound on the L2 norm of all gradients of one step; larger gradients are scaled down to it."""
    checkpoint_every_iterations: PositiveInt
    """Iterations between two saved states; a killed training repeats at most this many."""
    num_workers: NonNegativeInt | Literal["auto"]
    """Processes per GPU that read and augment images, or ``auto``: the cores that Gleaner may use less one, shared by
    the GPUs, 1 to 16. 0: the training process does it. Without effect on the result."""
    engine: Literal["local", "ray"]
    """Where training runs: on this machine's devices (or where ``torchrun`` started it), or as workers of the Ray
    cluster that ``infer.engine_address`` names (docs/guides/scale.md)."""
    engine_workers: PositiveInt
    """With ``ray``: workers that train as one, each with a GPU where the cluster has some. Both batch sizes must be
    multiples of it; another number draws other anchors and regions."""
    mixed_precision: bool
    """On CUDA; without effect on a CPU."""
    anchor_assigner: Literal["iou", "sim_ota"]
    """Which anchors of the proposal network learn an object: those that overlap it (``iou``), or those whose
    predictions cost least, up to ten an object (``sim_ota``, docs/method.md#sim-ota)."""
    class_norm_tau: Fraction
    """Exponent tau by which the norms of the foreground classes' score weights are made alike after the last iteration
    (docs/method.md#tau-norm). 1: all equal; 0: as trained. Without effect with one class."""
    channels_last: bool
    """Whether weights and activations are stored with the channels innermost, which CUDA convolutions prefer."""

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
    """Both views are scaled by a factor drawn from 1 minus this to 1 plus this."""
    strong_magnitude: Fraction
    """Strength of the strong view's color jitter, gray, blur and cutouts (docs/method.md#strong-view). 0: none."""
    tile_probability: Fraction
    """Of a random tile in the place of a whole picture that is larger, in training (docs/method.md#tiles). Without
    effect where ``model.tile_side_px`` is 0."""


class SslParams(Section):
    """Semi-supervised part of training (docs/method.md#training, docs/method.md#eq-16 to #eq-20)."""

    enabled: bool
    """Whether unlabeled images take part after burn-in. False: training is supervised throughout."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Largest decay d of the teacher's running mean of the student, per iteration after burn-in. The decay grows to it
    from 0.1 (docs/method.md#eq-19)."""
    teacher_decays: list[Annotated[float, Field(ge=0, lt=1)]]
    """Decays of further moving averages of the student, whose class posteriors are averaged with the teacher's where
    pseudo-labels are made (docs/method.md#several-teachers). Each costs a forward pass and the memory of a network.
    Empty: the teacher alone."""
    lambda_unsup: NonNegativeFloat
    """Weight of the unsupervised loss at the end of the ramp (docs/method.md#eq-18). On small data a low weight is
    safer: other projects report NaN losses with 4."""
    rampup_iterations: NonNegativeInt
    """Iterations after burn-in over which the weight of the unsupervised loss grows linearly (docs/method.md#eq-20)."""
    pseudo_label_threshold_mode: Literal["fixed", "adaptive", "precision"]
    """``adaptive`` lowers the threshold of classes whose running mean score is lower (docs/method.md#eq-22).
    ``precision`` takes the lowest score at which a class's measured precision reaches ``pseudo_label_precision``, and
    ``pseudo_label_threshold`` for classes with too little evidence (docs/method.md#precision)."""
    pseudo_label_threshold: Fraction
    """Score a teacher's box needs to become a pseudo-label."""
    pseudo_label_precision: Fraction
    """Precision that mode ``precision`` asks of a pseudo-label."""
    min_precision: Fraction
    """A class takes no part while the lower confidence bound (90 %, one-sided) on the measured precision of its
    pseudo-labels is less: its detections are neither object nor background. Where no class takes part, the round is
    supervised. 0: every class takes part (docs/method.md#precision)."""
    min_precision_terms: PositiveInt
    """Detections with a known outcome, at or above a class's threshold, that make its precision known. With fewer, the
    class has ``pseudo_label_threshold`` and takes part."""
    precision_batches: PositiveInt
    """Batches, newest first, whose returned labels give outcomes; earlier teachers were worse."""
    ignore_score_threshold: Fraction
    """From this score up to the threshold the teacher is unsure: neither object nor background. 1: it never is."""
    pseudo_label_check: Literal["none", "veto", "weight"]
    """Checks a detection that would become a pseudo-label: is the feature map active in the box, and does the region
    look like labeled regions of its class (docs/method.md#pseudo-label-checks)? ``veto``: one below the threshold is
    neither object nor background. ``weight``: it counts less in the classification loss (docs/guides/learners.md)."""
    pseudo_label_check_threshold: Annotated[float, Field(gt=0, le=1)]
    """Value of the check, in [0, 1], below which a pseudo-label is refused or counts less."""
    pseudo_label_box_loss: bool
    """Whether pseudo-boxes also train box regression; off in the paper's family of methods."""
    paste_rare_frac: Fraction
    """Share of the strong views that labeled objects are pasted into, their classes drawn in inverse proportion to the
    labeled boxes of the class (docs/method.md#copy-paste)."""
    paste_objects_per_view: PositiveInt
    """Objects that are drawn for such a view; fewer are pasted where they would hide others."""
    paste_pseudo_frac: Fraction
    """Chance that a trusted pseudo-label of the same class takes the place of a labeled object that is pasted
    (docs/method.md#copy-paste). 0: only labeled objects are pasted."""
    paste_pseudo_score: Fraction
    """Score of the teacher from which a pseudo-label is trusted."""
    objectness_doubt: bool
    """Whether background of unlabeled images counts less in the proposal network's loss where the teacher cannot tell
    object from background (docs/method.md#objectness-doubt)."""
    relation_weight: NonNegativeFloat
    """Weight of the loss that asks the student to relate the regions of a strong view to each other as the teacher
    relates those of the weak view (docs/method.md#relations). 0: it is not computed."""
    focal_gamma: NonNegativeFloat
    """Exponent of the focal loss of the ROI classifier (docs/method.md#eq-8); 1.5 as in Unbiased Teacher. 0 is cross
    entropy."""
    noise_aware_loss: Literal["none", "generalized", "bootstrap"]
    """What replaces the ROI classifier's focal loss in images with pseudo-labels (docs/method.md#noise-aware).
    ``generalized``: generalized cross entropy, which grows less where the label is contradicted. ``bootstrap``: the
    less sure the teacher was, the more the student's own posterior is the target. ``none``: nothing."""
    generalized_q: Annotated[float, Field(gt=0, le=1)]
    """Exponent q of ``generalized``: towards 0 it is cross entropy, 1 is the absolute error; 0.7 in Zhang and Sabuncu
    (2018). Without effect otherwise."""
    noise_aware_labels: bool
    """Whether ``generalized`` also replaces it in labeled images, whose labels are wrong now and then."""
    image_weighting: Literal["favor_uncertain", "favor_certain", "uniform"]
    """Weight W_j of an unlabeled image: sigmoid(z_j), sigmoid(-z_j), or 1 (docs/method.md#eq-17)."""
    standardize_image_weights: bool
    """Whether z_j is the standardized uncertainty instead of the uncertainty itself (docs/method.md#eq-17)."""
    weights_from: Literal["burn_in", "previous_round"]
    """Whose uncertainty U_j gives the weight W_j: that of the teacher at the end of burn-in, which scores unlabeled
    images then, or that of the round before, which the first round does not have (docs/method.md#burn-in-weights)."""
    max_scored_images: PositiveInt
    """Upper bound on the unlabeled images that the teacher scores at the end of burn-in, one forward pass each; the
    others get z_j = 0."""
    use_weights: Literal["loss", "sampling"]
    """Whether W_j is a factor of the image's loss, or its chance to be drawn into a batch
    (docs/method.md#sampling)."""
    divergence_loss_ratio: PositiveFloat
    """A running ratio of unsupervised to supervised loss above this stops the training (docs/method.md#training)."""

    @model_validator(mode="after")
    def _check_noise_aware(self) -> Self:
        if self.noise_aware_labels and self.noise_aware_loss != "generalized":
            raise ValueError(
                f"noise_aware_labels is true with noise_aware_loss {self.noise_aware_loss}, expected generalized:"
                " labels have no teacher's score that bootstrap could use"
            )
        if self.noise_aware_loss != "none" and not (self.enabled or self.noise_aware_labels):
            raise ValueError(
                f"noise_aware_loss is {self.noise_aware_loss}, expected none where enabled and noise_aware_labels are"
                " false: no image would be trained with it"
            )
        return self

    @model_validator(mode="after")
    def _check_teachers(self) -> Self:
        if self.teacher_decays and not self.enabled:
            raise ValueError(
                f"teacher_decays is {self.teacher_decays}, expected [] where enabled is false: no pseudo-label is made"
            )
        decays = [self.ema_decay, *self.teacher_decays]
        if len(set(decays)) < len(decays):
            raise ValueError(
                f"teacher_decays is {self.teacher_decays}, expected each once and none equal to ema_decay:"
                " two averages with one decay are the same teacher"
            )
        return self

    @model_validator(mode="after")
    def _check_dense_information(self) -> Self:
        if self.paste_rare_frac == 0 and (self.paste_objects_per_view > 1 or self.paste_pseudo_frac > 0):
            raise ValueError(
                f"paste_objects_per_view is {self.paste_objects_per_view} and paste_pseudo_frac"
                f" {self.paste_pseudo_frac:g} with paste_rare_frac 0, expected 1 and 0: nothing is pasted"
            )
        is_fixed = self.pseudo_label_threshold_mode == "fixed"
        if self.paste_pseudo_frac > 0 and is_fixed and self.paste_pseudo_score < self.pseudo_label_threshold:
            raise ValueError(
                f"paste_pseudo_score is {self.paste_pseudo_score:g}, expected at least pseudo_label_threshold"
                f" {self.pseudo_label_threshold:g}: below it there are no pseudo-labels"
            )
        if self.objectness_doubt and not self.enabled:
            raise ValueError(
                "objectness_doubt is true, expected false where enabled is false: no unlabeled image is trained on"
            )
        if self.relation_weight > 0 and not self.enabled:
            raise ValueError(
                f"relation_weight is {self.relation_weight:g}, expected 0 where enabled is false:"
                " no image has two views"
            )
        return self

    @model_validator(mode="after")
    def _check_has_pseudo_labels(self) -> Self:
        if self.pseudo_label_check != "none" and not self.enabled:
            raise ValueError(
                f"pseudo_label_check is {self.pseudo_label_check}, expected none where enabled is false:"
                " no pseudo-label is made"
            )
        return self


class EvaluateParams(Section):
    """COCO mAP of teacher and student on the fixed validation set."""

    batch_size: PositiveInt
    """Images per forward pass. Without effect on the result but for rounding."""
    score_threshold: Fraction
    """Boxes with a lower score are left out of the evaluation. COCO mAP integrates over all scores: keep it low."""
    protocols: list[Literal["voc07", "voc12", "miss_rate", "operating_point", "confusion", "slices"]]
    """Further measures beside COCO mAP (docs/method.md#protocols): AP of PASCAL VOC 2007 or of VOC 2010 on, log-average
    miss rate, operating points, a confusion matrix, and mAP by slices of the images: size, brightness, source, time."""
    wanted_precision: Annotated[float, Field(gt=0, le=1)]
    """Share of right detections that ``operating_point`` finds the lowest threshold for."""
    false_alarm_cost: NonNegativeFloat
    """Cost of a detection of nothing, in the unit of ``miss_cost``."""
    miss_cost: NonNegativeFloat
    """Cost of an object that is not found; ``operating_point`` finds the threshold at which errors cost least."""

    @model_validator(mode="after")
    def _check_protocols(self) -> Self:
        if len(set(self.protocols)) < len(self.protocols):
            raise ValueError(f"protocols are {', '.join(self.protocols)}, expected each once")
        return self


class InferParams(Section):
    """The teacher over the unlabeled pool."""

    batch_size: PositiveInt
    """Images per forward pass. Without effect on the result but for rounding."""
    shard_size: PositiveInt
    """Images per file of detections. Files of some thousand are few and still fit into memory; a killed run repeats at
    most 512 images per GPU, whatever this is."""
    score_threshold: Fraction
    """Boxes with a lower score are not stored and take no part in the metrics (docs/method.md#teacher-output)."""
    committee: Literal["none", "student", "previous_teacher"]
    """A second detector whose disagreement with the teacher is measured on every image, for objective ``committee``
    (docs/method.md#committee): the student of the round, or the teacher of the round before (in the first round, the
    student). It costs a second forward pass."""
    engine: Literal["local", "ray"]
    """Where the pool is detected: on this machine's devices, or on the nodes of a Ray cluster (docs/guides/scale.md).
    Neither this nor the next four change a byte of the result, so no stage declares them."""
    engine_address: Annotated[str, Field(pattern=r"^(local|auto|[\w.-]+:\d+)$")]
    """With ``ray``. ``local``: a cluster of this machine alone, for as long as the stage runs; ``auto``: the cluster of
    which a node runs on this machine; otherwise HOST:PORT of its head."""
    engine_workers: PositiveInt | Literal["auto"]
    """With ``ray``: the most actors at once, or ``auto``: as many as the cluster has room for."""
    engine_cpus_per_worker: PositiveFloat | Literal["auto"]
    """With ``ray``: logical CPUs that an actor takes. ``auto``: half a one beside a GPU, else as many as this machine
    computes with less a half, so that other work of the cluster finds room."""
    engine_timeout_minutes: PositiveFloat
    """With ``ray``: minutes without a finished piece of 512 images after which the stage ends with what is known of the
    cluster. A piece that is open half as long is given to another actor."""


class ScoringParams(Section):
    """The three metrics (docs/method.md#metrics)."""

    confidence: Literal["sum", "least_confidence"]
    """Sum of the boxes' scores, or mean of 1 - score (docs/method.md#eq-2)."""
    entropy: Literal["sum", "mean"]
    """Sum or mean over the boxes of the class posterior's entropy, in nats (docs/method.md#eq-3)."""
    normalize: Literal["quantile", "minmax", "max", "none"]
    """How each metric is put on [0, 1] over the pool and the calibration images (docs/method.md#eq-6)."""
    no_detection_score: Literal["min", "median", "max", "estimate"]
    """Normalized metrics of an image without any detection: 0, the median or the maximum of the others, or those of the
    objects that are estimated to be missed there (docs/method.md#eq-7)."""


class DwaParams(Section):
    """Dynamic Weight Adjustment (docs/method.md#dwa)."""

    mode: Literal["learned", "equal", "confidence", "entropy", "overlap", "fixed", "activeteacher"]
    """Where the metric weights come from: the rule that the pairs support, or one of the comparisons
    (docs/method.md#dwa). In a comparison all class weights are 1."""
    metrics: Annotated[list[Literal["confidence", "entropy", "overlap"]], Field(min_length=1)]
    """Metrics that the mixture is made of; the others get weight 0."""
    fixed_weights: Annotated[list[NonNegativeFloat], Field(min_length=1)]
    """Weights of mode ``fixed``, one for each of ``metrics``; must sum to 1."""
    min_training_samples: Annotated[int, Field(ge=4)]
    """Fewer pairs than this: ``prior_rule`` (cold start)."""
    prior_rule: Literal["equal", "confidence", "entropy", "overlap"]
    """Rule of the cold start, and later until another one leads it by ``min_gain_se`` standard errors: equal weights,
    or one of ``metrics`` alone (docs/method.md#choice)."""
    history_batches: PositiveInt
    """Batches, newest first: the images offered in them give the pairs."""
    cv_folds: Annotated[int, Field(ge=2)]
    """The pairs are split into this many parts; each part judges a network trained on the others."""
    focal_gamma: NonNegativeFloat
    """Exponent of the focal loss in the realized loss (docs/method.md#eq-8)."""
    epochs: PositiveInt
    """Steps of the network's training; each uses all samples."""
    hidden_units: PositiveInt
    """Width of the network's one hidden layer (docs/method.md#eq-12)."""
    learning_rate: PositiveFloat
    """Learning rate of the network's parameters that read the image; constant."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay of the network's parameters that read the image."""
    weight_variance_penalties: Annotated[list[NonNegativeFloat], Field(min_length=1)]
    """Constants c of the penalty c / n on the variance of the metric weights between images, n the number of pairs
    (docs/method.md#eq-14). Cross-validation chooses among them. Large values give all images nearly the same
    weights."""
    prior_penalty: NonNegativeFloat
    """Constant c_u of the penalty c_u / n on the squared distance of the mean metric weights from those of
    ``prior_rule`` (docs/method.md#eq-14)."""
    allow_negative_weights: bool
    """Whether the mixture may hold 1 - m of a metric m, which is a negative weight of m (docs/method.md#eq-12)."""
    min_gain_se: NonNegativeFloat
    """A more complex rule is used only where its held-out rank correlation is larger by more than this many standard
    errors of the difference (docs/method.md#choice)."""
    min_random_samples: Annotated[int, Field(ge=4)]
    """From so many pairs of uniformly drawn images on (random picks and calibration images), rules are compared on
    these alone; until then on all pairs (docs/method.md#choice)."""
    class_weights: Literal["learned", "uniform"]
    """Weights of the classes in the training loss and in the realized loss: from the realized losses of mode
    ``learned``, or 1 (docs/method.md#class-weights)."""
    class_weight_prior_count: PositiveFloat
    """Number of terms k that draw a class's weight to 1 as strongly as its own terms draw it to its difficulty
    (docs/method.md#eq-10)."""
    class_weight_max: Annotated[float, Field(ge=1)]
    """Upper bound v_max on one class's weight, its inverse is the lower one; the mean is 1 (docs/method.md#eq-10)."""

    @model_validator(mode="after")
    def _check_weights_sum(self) -> Self:
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics are {', '.join(self.metrics)}, expected each once")
        if len(self.fixed_weights) != len(self.metrics):
            raise ValueError(f"fixed_weights are {len(self.fixed_weights)}, expected one for each of dwa.metrics")
        if self.prior_rule not in ("equal", *self.metrics):
            raise ValueError(f"prior_rule is {self.prior_rule}, expected equal or one of dwa.metrics")
        if abs(sum(self.fixed_weights) - 1) > 1e-3:
            raise ValueError(f"fixed_weights sum to {sum(self.fixed_weights):.4g}, expected 1")
        return self


class BudgetParams(Section):
    """What one batch may cost."""

    unit: Literal["images", "boxes", "minutes"]
    """What is counted: images, expected boxes, or expected minutes of annotation (docs/method.md#cost)."""
    amount: PositiveFloat
    """Upper bound on one batch, in ``unit``."""
    minutes_per_box: NonNegativeFloat
    """Expected minutes for each expected box (b in docs/method.md#eq-23)."""
    minutes_per_image: NonNegativeFloat
    """Expected minutes to open and check an image without any box (a in docs/method.md#eq-23)."""
    min_timed_annotations: Annotated[int, Field(ge=3)]
    """From so many answers with a measured time on, ``minutes_per_box`` and ``minutes_per_image`` are fitted to them;
    until then the two are used as given."""
    relabel_frac: Annotated[float, Field(ge=0, lt=1)]
    """Share of ``amount`` that goes to labeled images whose labels the teachers doubt most: people check them with the
    next batch (docs/method.md#relabel). What is not used is left to new images; a share too small for one image checks
    none. 0: none are checked."""

    @model_validator(mode="after")
    def _check_costs(self) -> Self:
        if self.unit == "images" and self.amount < 1:
            raise ValueError(f"amount is {self.amount:g}, expected at least 1 image")
        if self.unit == "minutes" and self.minutes_per_image == 0:
            raise ValueError("minutes_per_image is 0, expected more: images without boxes would be free")
        return self


class SelectParams(Section):
    """Which images are labeled next."""

    strategy: Annotated[str, name_or_class_path(*STRATEGY_NAMES)]
    """Order in which images are taken: ``uncertainty`` and ``entropy``, falling; ``random``, a uniform draw;
    ``coreset``, diversity alone; ``value_per_minute``, expected errors for the time they cost; one objective alone;
    ``composite``, the mean of ``objectives``; or ``portfolio``, several of them by what their minutes brought
    (docs/method.md#selection). An own class is named as ``package.module:ClassName`` (docs/guides/extend.md)."""
    objectives: dict[ObjectiveName, NonNegativeFloat]
    """Weights of what strategy ``composite`` wants: any of the names of docs/method.md#objectives, relative to each
    other."""
    portfolio: Annotated[list[PortfolioArm], Field(min_length=2)]
    """Strategies that share a batch under strategy ``portfolio`` (docs/method.md#portfolio); the first one also orders
    the images that no batch will reach."""
    random_frac: Fraction
    """Share of the batch, in images, drawn uniformly from the whole pool. Without it the DWA network would only learn
    from images that its own rule prefers."""

    @property
    def used_strategies(self) -> tuple[str, ...]:
        """The strategy, or those of the portfolio."""
        return tuple(self.portfolio) if self.strategy == "portfolio" else (self.strategy,)

    @property
    def uses_committee(self) -> bool:
        """Whether the strategy needs the disagreement of two detectors."""
        has_weight = "composite" in self.used_strategies and self.objectives.get("committee", 0) > 0
        return has_weight or "committee" in self.used_strategies

    @model_validator(mode="after")
    def _check_objectives(self) -> Self:
        if len(set(self.portfolio)) < len(self.portfolio):
            raise ValueError(f"portfolio is {', '.join(self.portfolio)}, expected each once")
        if "composite" in self.used_strategies and not any(self.objectives.values()):
            raise ValueError("objectives have no weight above 0, expected at least one for strategy composite")
        return self


class PreannotationParams(Section):
    """Boxes of the teacher that annotators find in their images."""

    score_threshold: Fraction
    """Boxes with a lower score are not shown to annotators, and classes with a lower one are not named."""
    suppress_iou: Annotated[float, Field(gt=0, le=1)]
    """Of boxes with a larger IoU, whatever their classes, annotators get the one with the highest score, with the next
    likeliest class named. 1: none is left out."""


class ReportParams(Section):
    """The HTML page."""

    thumbnails: NonNegativeInt
    """Selected images shown on the page, best rank first. 0: the page holds no picture at all, its map neither."""


class StoppingParams(Section):
    """When the report advises to stop labeling (docs/method.md#stopping)."""

    window_rounds: Annotated[int, Field(ge=4)]
    """Newest rounds that the trend of mAP is fitted to. Fewer follow a curve faster, and take noise for a plateau more
    often."""
    horizon_batches: PositiveInt
    """Batches ahead that the trend is extended to."""
    min_gain_points: PositiveFloat
    """Stopping is advised where those batches will bring fewer points of mAP than this."""
    confidence_level: Annotated[float, Field(ge=0.5, lt=1)]
    """One-sided, of the bound on that gain."""


class NightlyParams(Section):
    """The nightly flow; read by no stage."""

    on_few_labels: Literal["skip", "proceed"]
    """What a round does with fewer newly labeled images than ``min_new_labels``: end, or train on the labels there are.
    Where every lease has expired, or no image is left to label, waiting would not help, so the round proceeds."""
    min_new_labels: PositiveInt
    """Newly labeled images that make a round worth its training."""
    max_pending_images: PositiveInt
    """With this many images or more still at the annotators, a round offers no further batch."""
    stop: Literal["advise", "hold"]
    """What a run does where stopping is advised (section ``stopping``): say so, or also offer no new batch until this
    is ``advise`` again. It collects and trains in both cases."""
    stage_timeout_minutes: PositiveFloat
    """A stage that runs longer is stopped and has failed. The next round resumes from the state that it saved."""
    alert_after_days_without_labels: PositiveFloat
    """Days without a new label, with images still at the annotators, after which an alert is sent."""
    alert_when_batches_left: NonNegativeInt
    """An alert is sent when the pool holds fewer images than this many batches of the last size."""
