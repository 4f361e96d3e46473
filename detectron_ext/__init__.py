"""HOW: the detector, the training step, the scores and the DWA network. Knows torch, Detectron2 and timm; no files."""
