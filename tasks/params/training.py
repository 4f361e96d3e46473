"""The sections of ``params.yaml`` that say what is trained and how: model, train, augmentation, ssl.

Each field says its meaning, unit, range and source.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.params.base import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from tasks.runtime.extensions import ValueNotAllowedError

MIN_TILE_SIDE_PX = 64
WEIGHTS_ADDRESS = re.compile(r"(?P<scheme>https|detectron2)://(?P<path>[^\s#]+)#sha256=(?P<sha256>[0-9a-f]{64})")
"""A weights file to fetch, and the digest that it must have."""


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


class TrainParams(Section):
    """Schedule and optimizer (AdamW, linear warm-up, cosine decay)."""

    init_from: Literal["pretrained", "previous_round"]
    """Start from the backbone's weights, or from the previous round's teacher."""
    pretrain_iterations: NonNegativeInt
    """Optimizer steps that train the backbone on all images without their labels, before a round that starts from the
    backbone's weights (docs/method.md#pretraining). 0: none."""
    pretrain_batch_size: PositiveInt
    """Images per such iteration, each in two views (docs/guides/learners.md)."""
    pretrain_learning_rate: PositiveFloat
    """Largest learning rate of these iterations: it rises over the first tenth, then falls to 0 along half a cosine."""
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
    roi_assigner: Literal["iou", "sim_ota"]
    """The same for the regions of the second stage; ``sim_ota`` passes all proposals through the box head first."""
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
    fusion_mirrored_view: bool
    """Whether the teacher sees each weak view mirrored too, and pseudo-labels are made of both answers, fused
    (docs/method.md#fusion). Not where left and right mean something."""
    fusion_earlier_teachers: NonNegativeInt
    """Earlier states of the teacher, at most, whose detections are fused with its own. Each costs a forward pass and
    the memory of a network."""
    fusion_every_iterations: PositiveInt
    """Iterations between two states that are kept; the first is that of the end of burn-in."""
    fusion_decay_iterations: PositiveFloat
    """Age, in iterations, at which an earlier teacher's weight has fallen to 1/e."""
    fusion_iou_threshold: Annotated[float, Field(gt=0, lt=1)]
    """Boxes of one class with a larger IoU are taken for one object; 0.55 in Solovyev et al. (2021)."""
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
    source_kl_weight: NonNegativeFloat
    """Weight of the loss that holds the student's class posteriors near those of the teacher that the round before
    gave, in unlabeled images (docs/method.md#source-anchor). Needs ``train.init_from: previous_round``; without effect
    in the first round. 0: it is not computed."""
    source_kl_perturbation_rms: NonNegativeFloat
    """Root mean square of the adversarial perturbation under which the student is compared, in gray levels of 255.
    0: none, which saves one of two passes of the student."""
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
        return self

    @model_validator(mode="after")
    def _check_enabled(self) -> Self:
        if not self.enabled:
            self.require_no_unlabeled("enabled is false")
        return self

    def require_no_unlabeled(self, where: str, prefix: str = "") -> None:
        """Refuse what needs unlabeled images.

        Args:
            where: why there are none, for the message.
            prefix: of the parameters' names, for the message.

        Raises:
            ValueError: a parameter asks for it.
        """
        for name, (off, reason) in _NEEDS_UNLABELED.items():
            value = getattr(self, name)
            if value != off:
                problem = f"{prefix}{name} is {_as_yaml(value)}, expected {_as_yaml(off)} where {where}"
                raise ValueError(f"{problem}: {reason}")


_NEEDS_UNLABELED: dict[str, tuple[object, str]] = {
    "teacher_decays": ([], "no pseudo-label is made"),
    "fusion_mirrored_view": (False, "no pseudo-label is made"),
    "fusion_earlier_teachers": (0, "no pseudo-label is made"),
    "pseudo_label_check": ("none", "no pseudo-label is made"),
    "objectness_doubt": (False, "no unlabeled image is trained on"),
    "relation_weight": (0.0, "no image has two views"),
    "source_kl_weight": (0.0, "no unlabeled image is trained on"),
}
"""Parameters of section ssl that need unlabeled images: the value without effect, and what is missing."""


def _as_yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
