"""The smallest detector that is still the real one."""

from detectron_ext.config import DetectorSpec

NUM_CLASSES = 3
TINY = DetectorSpec(
    backbone="tf_efficientnet_lite0",
    trainable_stages=4,
    fpn_channels=32,
    num_classes=NUM_CLASSES,
    anchor_sizes_px=(8.0, 16.0, 32.0, 64.0, 128.0),
    anchor_aspect_ratios=(1.0,),
    nms_iou_threshold=0.5,
    max_detections_per_image=20,
    focal_gamma=1.5,
)
