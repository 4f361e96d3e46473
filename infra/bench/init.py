"""Time and memory of an import: 100,000 images and 1,000,000 boxes in one COCO file.

Run: ``make bench``. The baseline is ``json.load`` and the index that pycocotools makes of the same file; each is
measured in a process of its own. Images are not opened: what decoding costs depends on the images, and is the same for
every reader. ``python -m infra.bench.init --images`` draws and opens real, tiny ones.
"""

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

_NUM_IMAGES, _NUM_BOXES, _NUM_CLASSES = 100_000, 1_000_000, 10
_SIZE_PX = (640, 480)
_MAX_SLOWDOWN, _MAX_MEMORY_GB = 3.0, 2.0


class UnopenedImages:
    """A listing whose images are all of one size and never opened."""

    def __init__(self, num_images: int = _NUM_IMAGES) -> None:
        """List so many."""
        self._num_images = num_images

    passed_over: Mapping[str, int] = {}
    skipped_links: Sequence[str] = ()

    def names(self) -> Iterator[str]:
        """Yield the names of the drawn file."""
        return (image_name(number) for number in range(self._num_images))

    def inspect(self, name: str) -> "object":
        """Make up what a decoded image would turn out to be."""
        from tasks.data.images import ImageMetadata

        digest = f"{int(name[-10:-4]):016x}".ljust(64, "0")
        return ImageMetadata(*_SIZE_PX, ".jpg", 1, digest)

    def uri_of(self, name: str) -> str:
        """Return an address, so that nothing is copied."""
        return f"s3://bench/{name}"

    def copy(self, name: str, target: Path) -> None:
        """Nothing is copied."""
        raise NotImplementedError(name, target)


def image_name(number: int) -> str:
    """Name of an image, in one of 100 folders."""
    return f"folder{number % 100:02d}/image_{number:06d}.jpg"


def write_document(path: Path, num_images: int = _NUM_IMAGES, num_boxes: int = _NUM_BOXES) -> None:
    """Write the COCO file."""
    random = np.random.default_rng(0)
    side_N2 = random.uniform(8, 100, (num_boxes, 2)).round(2)
    corner_N2 = (random.uniform(0, 1, (num_boxes, 2)) * (np.array(_SIZE_PX) - side_N2)).round(2)
    image_N = random.integers(0, num_images, num_boxes).tolist()
    class_N = random.integers(0, _NUM_CLASSES, num_boxes).tolist()
    boxes = np.hstack([corner_N2, side_N2]).tolist()
    width, height = _SIZE_PX
    document = {
        "images": [
            {"id": number, "file_name": image_name(number), "width": width, "height": height}
            for number in range(num_images)
        ],
        "annotations": [
            {"id": n, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (image, label, box) in enumerate(zip(image_N, class_N, boxes, strict=True))
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(_NUM_CLASSES)],
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def draw_images(folder: Path, num_images: int = _NUM_IMAGES) -> None:
    """Draw images that differ in one byte of a comment, as fast as a disk takes them."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", _SIZE_PX, (90, 120, 90)).save(stream, "JPEG", quality=30)
    for number in range(num_images):
        path = folder / image_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue() + number.to_bytes(4, "big"))


def run_baseline(folder: Path) -> None:
    """Parse the file and index it as pycocotools does."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        COCO(str(folder / "labels.json"))


def run_import(folder: Path, *, opened: bool) -> None:
    """Import the file, draw the splits and write the campaign's data."""
    from tasks.data.dataset_source import DatasetSource
    from tasks.data.initial_split import CampaignPlan, create_campaign_data
    from tasks.data.paths import Workspace

    images = folder / "images" if opened else UnopenedImages()
    source = DatasetSource("coco", folder / "labels.json", images)  # type: ignore[arg-type]
    plan = CampaignPlan(
        seed=1,
        seed_images=1000,
        calibration_images=100,
        val_frac=0.05,
        oracle=True,
        imported_at="2026-01-01T00:00:00+00:00",
        max_pixels=10**8,
    )
    data = create_campaign_data(source, plan, Workspace(folder / "campaign"))
    assert data.counts["boxes"] > 0.99 * _NUM_BOXES
    assert all(account.balances for account in data.accounts)


def measure(what: str, folder: Path) -> tuple[float, float]:
    """Seconds and gigabytes of one part, start of Python and imports included."""
    command = [sys.executable, "-m", "infra.bench.init", "--part", what, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, gigabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, gigabytes


def _run_part(what: str, folder: Path) -> None:
    started_s = time.perf_counter()
    if what == "baseline":
        run_baseline(folder)
    else:
        run_import(folder, opened=what == "images")
    seconds = time.perf_counter() - started_s
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", action="store_true", help="draw and open real images, too")
    parser.add_argument("--part", choices=["baseline", "import", "images"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        _run_part(options.part, options.folder)
        return
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as scratch:
        folder = Path(scratch)
        write_document(folder / "labels.json")
        parts = {"json.load and pycocotools' index": "baseline", "import, splits and tables": "import"}
        if options.images:
            draw_images(folder / "images")
            parts["the same with images opened and copied"] = "images"
        figures = {name: measure(part, folder) for name, part in parts.items()}
    table = Table("", "seconds", "GB", title=f"Import of {_NUM_IMAGES:,} images and {_NUM_BOXES:,} boxes")
    for name, (seconds, gigabytes) in figures.items():
        table.add_row(name, f"{seconds:.1f}", f"{gigabytes:.2f}")
    console = Console()
    console.print(table)
    (base_s, _), (import_s, import_gb) = list(figures.values())[:2]
    console.print(
        f"import / baseline: {import_s / base_s:.2f}, bar {_MAX_SLOWDOWN:.0f}; "
        f"memory {import_gb:.2f} GB, bar {_MAX_MEMORY_GB:.0f} GB"
    )


if __name__ == "__main__":
    main()
