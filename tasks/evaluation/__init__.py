"""COCO mAP, paired bootstrap and box matching."""
