"""Images for the benchmarks, drawn by code: photographs' sizes in both orientations, with a few bright boxes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_SIZES_PX = ((320, 240), (288, 216), (320, 200), (240, 180))
_NUM_LABELED, _NUM_UNLABELED = 24, 96


def write_images(folder: Path) -> None:
    """Write JPEG files and ``rows.json`` with the rows of the labeled and the unlabeled images."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = {"labeled": [], "unlabeled": []}
    for number in range(_NUM_LABELED + _NUM_UNLABELED):
        width, height = _SIZES_PX[number % len(_SIZES_PX)][:: 1 if rng.random() < 0.5 else -1]
        coarse = Image.fromarray(rng.integers(40, 160, (height // 16, width // 16, 3)).astype(np.uint8))
        pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
        boxes = []
        for _ in range(4):
            left, top = int(rng.integers(0, width - 60)), int(rng.integers(0, height - 60))
            side = int(rng.integers(20, 60))
            pixels[top : top + side, left : left + side] = rng.integers(180, 256, 3)
            boxes.append([left, top, left + side, top + side])
        uri = f"{number:04d}.jpg"
        Image.fromarray(pixels).save(folder / uri, quality=90)
        row = {"image_id": f"{number:016d}", "uri": uri, "width_px": width, "height_px": height}
        labels = {"boxes_xyxy": np.ravel(boxes).tolist(), "class_ids": [0, 1, 2, 0]}
        kind = "labeled" if number < _NUM_LABELED else "unlabeled"
        rows[kind].append({**row, **labels} if kind == "labeled" else row)
    (folder / "rows.json").write_text(json.dumps(rows))
