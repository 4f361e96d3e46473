"""The sections of ``params.yaml`` of all stages but the training, and of the nightly flow.

Each field says its meaning, unit, range and source.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.params.base import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from tasks.runtime.extensions import name_or_class_path

READY_STRATEGY_NAMES = (
    "least_confident",
    "margin",
    "localization",
    "committee",
    "objectness_entropy",
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
    "objectness_entropy",
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
    "objectness_entropy",
    "rarity",
    "novelty",
    "boundary",
    "failures",
    "diversity",
]


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
    objectness_entropy_frac: Fraction
    """Share of the cells of the proposal network's map of doubt, the most doubtful first, whose mean is the metric
    ``objectness_entropy`` of an image (docs/method.md#objectness-entropy); the report shows the map. 0: not measured.
    A small share finds a small unsure object in a picture that is clear otherwise."""
    backend: Literal["torch", "onnx", "openvino"]
    """What runs the detector (docs/guides/export.md#backend): torch, or ONNX Runtime or OpenVINO (extra ``export``),
    which are for machines without a GPU and for ``model.architecture: timm_fpn``. A part of the result, unlike
    ``engine``."""
    backend_precision: Literal["fp32", "int8"]
    """Numbers that ``onnx`` and ``openvino`` compute with; int8 is faster, and moves boxes and scores."""
    backend_calibration_images: PositiveInt
    """Images of the calibration set, at most, from which int8 takes the ranges of its values; with tiles, tiles."""
    engine: Literal["local", "ray"]
    """Where the pool is detected, and where ``prepare`` opens images that it does not know: on this machine's devices,
    or on the nodes of a Ray cluster (docs/guides/scale.md). Neither this nor the next four change a byte of the result,
    so no stage declares them."""
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

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if self.backend == "torch" and self.backend_precision != "fp32":
            raise ValueError(f"backend_precision is {self.backend_precision}, expected fp32 where backend is torch")
        if self.backend != "torch" and self.objectness_entropy_frac > 0:
            raise ValueError(
                f"objectness_entropy_frac is {self.objectness_entropy_frac:g}, expected 0 where backend is"
                f" {self.backend}: its graph gives no map"
            )
        return self


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

    mode: Literal[
        "learned", "equal", "confidence", "entropy", "overlap", "objectness_entropy", "fixed", "activeteacher"
    ]
    """Where the metric weights come from: the rule that the pairs support, or one of the comparisons
    (docs/method.md#dwa). In a comparison all class weights are 1."""
    metrics: Annotated[list[Literal["confidence", "entropy", "overlap", "objectness_entropy"]], Field(min_length=1)]
    """Metrics that the mixture is made of; the others get weight 0. ``objectness_entropy`` needs
    ``infer.objectness_entropy_frac``."""
    fixed_weights: Annotated[list[NonNegativeFloat], Field(min_length=1)]
    """Weights of mode ``fixed``, one for each of ``metrics``; must sum to 1."""
    min_training_samples: Annotated[int, Field(ge=4)]
    """Fewer pairs than this: ``prior_rule`` (cold start)."""
    prior_rule: Literal["equal", "confidence", "entropy", "overlap", "objectness_entropy"]
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

    @property
    def weighed_metrics(self) -> tuple[str, ...]:
        """The three metrics of detections, and ``objectness_entropy`` where it is used."""
        is_used = "objectness_entropy" in (*self.metrics, self.mode)
        return ("confidence", "entropy", "overlap", *(["objectness_entropy"] if is_used else []))

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

    def uses(self, objective: ObjectiveName) -> bool:
        """Whether a strategy needs this objective, alone or in ``objectives``."""
        has_weight = "composite" in self.used_strategies and self.objectives.get(objective, 0) > 0
        return has_weight or objective in self.used_strategies

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
