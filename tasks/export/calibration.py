"""Read what a network sees of images with people's labels: the ranges of int8 are taken from it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectron_ext.tile_windows import tile_windows
from tasks.export.runtime import resize
from tasks.model.detector import ImageReader, tile_config
from tasks.params.training import ModelParams
from tasks.runtime.errors import UserError


def calibration_inputs(
    root: Path, images: pa.Table, model: ModelParams, limit: int, *, without_int8: str
) -> list[NDArray[np.uint8]]:
    """Return at most ``limit`` inputs of a network, (H, W, 3) RGB each: images, or the tiles of large ones.

    Args:
        root: folder that image uris are relative to.
        images: with ``image_id`` and ``uri``.
        model: sizes at which the network sees an image.
        limit: of images read and of inputs.
        without_int8: what else the user can do, for the message.

    Raises:
        UserError: there are no images, or one is unreadable.
    """
    rows = images.select(["image_id", "uri"]).slice(0, limit).to_pylist()
    if not rows:
        fix = f"Import some: gleaner init --calibration-images N. Or {without_int8}."
        raise UserError("data/calibration.parquet", "the number of images is 0, expected some for int8", fix)
    read, inputs = ImageReader(root, rows), list[NDArray[np.uint8]]()
    for row in rows:
        if len(inputs) >= limit:  # a large picture may fill it alone
            break
        pixels = read(row["uri"])
        windows = tile_windows(pixels.shape[0], pixels.shape[1], tile_config(model))
        parts = [window.cut(pixels) for window in windows] or [pixels]
        inputs += [resize(np.ascontiguousarray(part), model.short_side_px, model.long_side_px) for part in parts]
    return inputs[:limit]
