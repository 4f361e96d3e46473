"""From a typed description to a Detectron2 config; the only place that writes one."""

from dataclasses import dataclass
from pathlib import Path

import timm
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from yaml import YAMLError

# Lowest score a detection may have; callers filter further. Below it boxes are noise and only cost NMS time.
MIN_SCORE = 0.02
_TWO_STAGE = ("GeneralizedRCNN", "RPN", "StandardROIHeads")


@dataclass(frozen=True)
class DetectorSpec:
    """Faster R-CNN with FPN. Lengths in pixels of the resized image.

    With ``config_file``, a Detectron2 YAML says what backbone, pyramid and anchors are, and the fields for
    those are not read.
    """

    backbone: str
    trainable_stages: int
    fpn_channels: int
    num_classes: int
    anchor_sizes_px: tuple[float, ...]
    anchor_aspect_ratios: tuple[float, ...]
    nms_iou_threshold: float
    max_detections_per_image: int
    focal_gamma: float = 0.0
    config_file: str | None = None


def add_detectron_ext_config(cfg: CfgNode) -> None:
    """Declare the keys that this package adds to Detectron2's config."""
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = ""  # any timm model with features_only
    cfg.MODEL.TIMM.TRAINABLE_STAGES = 0  # counted from the output
    cfg.MODEL.ROI_HEADS.FOCAL_GAMMA = 0.0  # gamma of docs/method.md#eq-8, >= 0


def build_cfg(spec: DetectorSpec, device: str) -> CfgNode:
    """Detectron2 config of ``spec``; models built from it report losses per image and full posteriors.

    Raises:
        ValueError: ``config_file`` describes no two-stage detector with FPN, or is no Detectron2 YAML.
    """
    cfg = get_cfg()
    add_detectron_ext_config(cfg)
    if spec.config_file is None:
        _set_timm_fpn(cfg, spec)
    else:
        _merge_config_file(cfg, spec.config_file)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.META_ARCHITECTURE = "PerImageRCNN"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PerImageRPN"
    cfg.MODEL.ROI_HEADS.NAME = "PerImageROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = spec.num_classes
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = MIN_SCORE
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = spec.nms_iou_threshold
    cfg.MODEL.ROI_HEADS.FOCAL_GAMMA = spec.focal_gamma
    cfg.TEST.DETECTIONS_PER_IMAGE = spec.max_detections_per_image
    return cfg


def _merge_config_file(cfg: CfgNode, config_file: str) -> None:
    zoo = Path(model_zoo.__file__).parent / "configs" / config_file
    path = zoo if zoo.is_file() else Path(config_file)
    try:
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except (OSError, AttributeError, KeyError, ValueError, AssertionError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config {config_file!r} is no Detectron2 YAML ({reason})") from None
    found = (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.ROI_HEADS.NAME)
    if found != _TWO_STAGE or "p5" not in cfg.MODEL.ROI_HEADS.IN_FEATURES:
        raise ValueError(f"config {config_file!r} is of {found}, expected {_TWO_STAGE} with FPN")
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = False  # people give boxes only


def _set_timm_fpn(cfg: CfgNode, spec: DetectorSpec) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.TIMM.NAME = spec.backbone
    cfg.MODEL.TIMM.TRAINABLE_STAGES = spec.trainable_stages
    cfg.MODEL.FPN.OUT_CHANNELS = spec.fpn_channels
    cfg.MODEL.FPN.NORM = "GN"
    cfg.INPUT.FORMAT = "RGB"
    # timm's statistics are of RGB in 0..1; ours are in 0..255
    statistics = timm.get_pretrained_cfg(spec.backbone) or timm.models.PretrainedCfg()
    cfg.MODEL.PIXEL_MEAN = [255 * value for value in statistics.mean]
    cfg.MODEL.PIXEL_STD = [255 * value for value in statistics.std]
    _set_rpn(cfg, spec)
    _set_roi_heads(cfg)


def _set_rpn(cfg: CfgNode, spec: DetectorSpec) -> None:
    levels = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.IN_FEATURES = levels
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[float(size)] for size in spec.anchor_sizes_px]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [list(spec.anchor_aspect_ratios)]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 400
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 200
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 300
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 150


def _set_roi_heads(cfg: CfgNode) -> None:
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 256
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    # One regressor for all classes: a rare class has too few boxes to learn its own.
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
