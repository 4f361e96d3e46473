"""The detector on files: weights, checkpoints, launch, inference, the served model."""
