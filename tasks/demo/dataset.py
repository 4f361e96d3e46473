"""The demo data on disk, in COCO layout: ``images/``, ``annotations.json`` (pool) and ``val.json``."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.demo.params import DigitsParams
from tasks.demo.plan import POOL, VAL, num_duplicates, plan_scenes
from tasks.demo.scene import Scene, render_scene
from tasks.demo.sources import SourceImages, Split, read_digits, read_photos
from tasks.runtime.progress import track
from tasks.storage import files

_ANNOTATIONS: dict[Split, str] = {"pool": "annotations.json", "val": "val.json"}


@dataclass(frozen=True)
class _RenderedImage:
    file_name: str
    content: bytes
    scene: Scene


def generate_dataset(out: Path, *, params: DigitsParams, classes: Sequence[str], seed: int) -> None:
    """Draw the demo data set into ``out``. The same arguments give the same bytes.

    Args:
        out: folder that gets ``images/``, ``annotations.json`` and ``val.json``.
        params: numbers of images; exact copies are among those of the pool.
        classes: names of digits, the most frequent first.
        seed: of all random choices.

    Raises:
        UserError: a class is no digit's name.
    """
    photos = read_photos()
    _write_split(out, "pool", params.pool_images, photos, classes, seed)
    _write_split(out, "val", params.val_images, photos, classes, seed)


def _write_split(
    out: Path,
    split: Split,
    num_images: int,
    photos: dict[str, Image.Image],
    classes: Sequence[str],
    seed: int,
) -> None:
    rendered = _render_split(split, num_images, SourceImages(photos, read_digits(classes, split)), classes, seed)
    (out / "images").mkdir(parents=True, exist_ok=True)
    for image in rendered:
        (out / "images" / image.file_name).write_bytes(image.content)
    files.write_json(out / _ANNOTATIONS[split], _coco(rendered, classes))


def _render_split(
    split: Split, num_images: int, sources: SourceImages, classes: Sequence[str], seed: int
) -> list[_RenderedImage]:
    stream = 0 if split == "pool" else 1
    rng = np.random.default_rng([seed, stream])
    num_copies = num_duplicates(num_images) if split == "pool" else 0
    specs = plan_scenes(num_images - num_copies, classes, POOL if split == "pool" else VAL, rng)
    scenes = [
        # Each picture has its own generator: changing how one is drawn leaves the others as they are.
        render_scene(spec, sources, np.random.default_rng([seed, stream, number]))
        for number, spec in enumerate(track(specs, f"drawing {split} images", total=len(specs)))
    ]
    encoded = [(_png(scene), scene) for scene in scenes]
    encoded += [encoded[i] for i in rng.choice(len(encoded), size=num_copies, replace=False)]
    order = rng.permutation(len(encoded))
    return [_RenderedImage(f"{split}-{n:04d}.png", *encoded[i]) for n, i in enumerate(order)]


def _png(scene: Scene) -> bytes:
    stream = io.BytesIO()
    scene.image.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def _coco(rendered: Sequence[_RenderedImage], classes: Sequence[str]) -> dict[str, Any]:
    category_id = {name: number for number, name in enumerate(classes, start=1)}
    images = [
        {"id": number, "file_name": d.file_name, "width": d.scene.image.width, "height": d.scene.image.height}
        for number, d in enumerate(rendered, start=1)
    ]
    boxes = [(number, name, box) for number, d in enumerate(rendered, start=1) for name, box in d.scene.boxes]
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id[name],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for number, (image_id, name, (x1, y1, x2, y2)) in enumerate(boxes, start=1)
    ]
    categories = [{"id": number, "name": name} for name, number in category_id.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
