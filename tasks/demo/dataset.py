"""The demo data on disk, in COCO layout: ``images/``, ``annotations.json`` (pool) and ``val.json``."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks import files
from tasks.demo.plan import POOL, VAL, num_duplicates, plan_pages
from tasks.demo.scene import Scene, draw_scene
from tasks.demo.sources import Sources, Split, read_digits, read_photos
from tasks.progress import track
from tasks.sections import DrawParams

_ANNOTATIONS: dict[Split, str] = {"pool": "annotations.json", "val": "val.json"}


@dataclass(frozen=True)
class _Drawn:
    file_name: str
    content: bytes
    scene: Scene


def draw_demo(out: Path, *, params: DrawParams, classes: Sequence[str], seed: int) -> None:
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
    drawn = _draw_split(split, num_images, Sources(photos, read_digits(classes, split)), classes, seed)
    (out / "images").mkdir(parents=True, exist_ok=True)
    for picture in drawn:
        (out / "images" / picture.file_name).write_bytes(picture.content)
    files.write_json(out / _ANNOTATIONS[split], _coco(drawn, classes))


def _draw_split(split: Split, num_images: int, sources: Sources, classes: Sequence[str], seed: int) -> list[_Drawn]:
    stream = 0 if split == "pool" else 1
    rng = np.random.default_rng([seed, stream])
    num_copies = num_duplicates(num_images) if split == "pool" else 0
    pages = plan_pages(num_images - num_copies, classes, POOL if split == "pool" else VAL, rng)
    scenes = [
        # Each picture has its own generator: changing how one is drawn leaves the others as they are.
        draw_scene(page, sources, np.random.default_rng([seed, stream, number]))
        for number, page in enumerate(track(pages, f"drawing {split} images", total=len(pages)))
    ]
    pictures = [(_png(scene), scene) for scene in scenes]
    pictures += [pictures[i] for i in rng.choice(len(pictures), size=num_copies, replace=False)]
    order = rng.permutation(len(pictures))
    return [_Drawn(f"{split}-{n:04d}.png", *pictures[i]) for n, i in enumerate(order)]


def _png(scene: Scene) -> bytes:
    stream = io.BytesIO()
    scene.image.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def _coco(drawn: Sequence[_Drawn], classes: Sequence[str]) -> dict[str, Any]:
    category_id = {name: number for number, name in enumerate(classes, start=1)}
    images = [
        {"id": number, "file_name": d.file_name, "width": d.scene.image.width, "height": d.scene.image.height}
        for number, d in enumerate(drawn, start=1)
    ]
    boxes = [(number, name, box) for number, d in enumerate(drawn, start=1) for name, box in d.scene.boxes]
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
