"""Time and memory of what annotators and growing campaigns send: many files, large files, many boxes, foreign images.

Run: ``python -m infra.bench.load``, or with the names of some parts; not part of ``make bench``. Each part runs in a
process of its own, on made-up answers; figures are wall and processor seconds and the largest resident set. A part says
what came in, and ends with an error where that is not what was sent. Sizes are those of the bars; ``--scale 0.1`` takes
a tenth.

inbox       10,000 files of YOLO boxes in one inbox: read, checked, made into labels
inbox-again the same files on the next night, when their labels are stored
coco-inbox  a COCO document of 500 MB in an inbox: 200,000 images, of which the batch has 5,000
coco-init   a COCO document of 500 MB through the import of ``gleaner init``; images are not opened
boxes       6,000 boxes on one image, in a COCO document in an inbox
export      a COCO export of 60,000 images, all but a few of them not of this batch
assemble    a pool of 1,000,000 images with 5,000 labels
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from infra.bench.init import UnopenedImages, image_name

_REPOSITORY = Path(__file__).parents[2]
_CLASSES = tuple(f"class {number}" for number in range(10))
_SIDE_PX = 640
_NUM_FILES, _BOXES_PER_FILE = 10_000, 5
_COCO_MB, _BYTES_PER_BOX = 500, 125
_NUM_COCO_IMAGES, _NUM_INIT_IMAGES, _BOXES_PER_IMAGE = 5_000, 200_000, 20
_NUM_BOXES, _NUM_FOREIGN, _NUM_OWN = 6_000, 60_000, 10
_NUM_POOL, _NUM_LABELED = 1_000_000, 5_000
_OLD_S = 3600.0  # files that were changed just now are left for the next night


@dataclass(frozen=True)
class Bar:
    """What a part may cost; None: no bar."""

    wall_s: float | None = None
    peak_mib: float | None = None

    def is_met(self, cost: "LoadCost") -> bool:
        """Compare; a busy machine needs more wall time than processor time, so the smaller one counts."""
        seconds = min(cost.wall_s, cost.cpu_s)
        return (self.wall_s is None or seconds <= self.wall_s) and (
            self.peak_mib is None or cost.peak_mib <= self.peak_mib
        )

    def __str__(self) -> str:
        """Read as a cell of the table."""
        parts = [f"{self.wall_s:.0f} s" if self.wall_s else "", f"{self.peak_mib:,.0f} MiB" if self.peak_mib else ""]
        return ", ".join(filter(None, parts)) or "-"


@dataclass(frozen=True)
class LoadCost:
    """What a part cost, and what came of it."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    result: str


BARS = {
    "inbox": Bar(),
    "inbox-again": Bar(),
    "coco-inbox": Bar(peak_mib=1500),
    "coco-init": Bar(peak_mib=1500),
    "boxes": Bar(wall_s=2),
    "export": Bar(wall_s=30),
    "assemble": Bar(wall_s=60),
}


class InboxCampaign:
    """A campaign with one delivery, and the folder its annotators share."""

    def __init__(self, folder: Path, num_images: int) -> None:
        """Take the folder of a part; ``create`` makes what is in it."""
        from flows.annotation.providers.base import AnnotationBatch
        from tasks.data.paths import Workspace

        self.workspace, self.share = Workspace(folder / "campaign"), folder / "share"
        self.inbox = self.share / "inbox" / "batch-0001"
        self.image_ids = tuple(f"{number:016x}" for number in range(num_images))
        delivered_at = "2026-03-01T00:00:00+00:00"
        self.delivery = AnnotationBatch(
            1, "key of batch 1", self.workspace.delivery(1), self.image_ids, delivered_at, "delivered", str(self.share)
        )

    def create(self) -> None:
        """Write a manifest of images that nobody opens, and no answers."""
        from flows.annotation.batches import MANIFEST
        from tasks.data.schemas import AnnotationTask, LabelBatch
        from tasks.params.template import render_params
        from tasks.storage import files

        template = (_REPOSITORY / "params.yaml").read_text(encoding="utf-8")
        changes = ("provider.kind=folder", f"provider.url={self.share}", "label_validation.max_boxes_per_image=10000")
        params = render_params(template, classes=_CLASSES, overrides=changes)
        files.write_bytes(self.workspace.params, params.encode())
        seed = LabelBatch(batch=0, provider="import", collected_at="2026-03-01T00:00:00+00:00", images=())
        files.write_json(self.workspace.label_batch(0), seed.model_dump(mode="json"))
        tasks = [
            AnnotationTask(
                image_id=image_id, uri=f"data/images/{image_id}.png", width_px=_SIDE_PX, height_px=_SIDE_PX,
                rank=rank, reason="why", uncertainty=0.5, predictions=(), model_digest="ab" * 32,
            )
            for rank, image_id in enumerate(self.image_ids, start=1)
        ]  # fmt: skip
        lines = "".join(f"{task.model_dump_json()}\n" for task in tasks)
        files.write_bytes(self.delivery.folder / MANIFEST, lines.encode())
        self.inbox.mkdir(parents=True)

    def send(self, name: str, content: str) -> None:
        """Put a file of an hour ago into the inbox."""
        path = self.inbox / name
        path.write_text(content, encoding="utf-8")
        _make_old(path)

    def collect(self) -> "CollectedLabels":
        """Read and check everything, as a night does before it writes the label batch."""
        images, _ = self._new_annotations()
        num_entries = sum(1 for _ in self.workspace.quarantine.glob("*.json"))
        return CollectedLabels(len(images), sum(len(image.boxes) for image in images), num_entries)

    def store(self) -> None:
        """Write the answers as label batch 1, so that the next collection finds them known."""
        from tasks.data.schemas import LabelBatch
        from tasks.storage import files

        images, others = self._new_annotations()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        batch = LabelBatch(batch=1, provider="folder", collected_at=now, images=images, other_annotations=others)
        files.write_json(self.workspace.label_batch(1), batch.model_dump(mode="json"))

    def _new_annotations(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        from flows.annotation.collect import LabelCollector
        from flows.annotation.providers.folder import FolderProvider
        from tasks.params import load_params

        params = load_params(self.workspace.params)
        provider = FolderProvider(params.provider, _CLASSES, self.workspace.root)
        collector = LabelCollector(self.workspace, provider, params, datetime.now(UTC))
        collector.fetch([self.delivery])
        if collector.provider_errors:
            raise collector.provider_errors[0]
        return collector.new_annotations()


@dataclass(frozen=True)
class CollectedLabels:
    """What a collection found."""

    images: int
    boxes: int
    quarantine_entries: int

    def __str__(self) -> str:
        """Read as a line of the table."""
        return f"{self.images:,} images, {self.boxes:,} boxes, {self.quarantine_entries:,} quarantine entries"


def _grid_boxes(number: int) -> Iterator[tuple[float, float, float, float]]:
    """Yield boxes that do not overlap, as x, y, width and height in pixels."""
    columns = int(np.ceil(np.sqrt(number)))
    side = _SIDE_PX / columns
    for box in range(number):
        row, column = divmod(box, columns)
        yield column * side + 0.1 * side, row * side + 0.1 * side, 0.8 * side, 0.8 * side


def _write_coco(path: Path, names: Sequence[str], boxes_per_image: int, height_px: int = _SIDE_PX) -> None:
    """Write a COCO document a line at a time."""
    shrink = height_px / _SIDE_PX
    boxes = [(x, shrink * y, width, shrink * height) for x, y, width, height in _grid_boxes(boxes_per_image)]
    with path.open("w", encoding="utf-8") as stream:
        stream.write('{"categories": [')
        stream.write(", ".join(json.dumps({"id": n, "name": name}) for n, name in enumerate(_CLASSES)))
        stream.write('], "images": [\n')
        for number, name in enumerate(names):
            image = {"id": number, "file_name": name, "width": _SIDE_PX, "height": height_px}
            stream.write(("," if number else "") + json.dumps(image) + "\n")
        stream.write('], "annotations": [\n')
        for number in range(len(names)):
            for place, box in enumerate(boxes):
                found = {
                    "id": number * boxes_per_image + place, "image_id": number, "category_id": place % len(_CLASSES),
                    "bbox": [round(value, 3) for value in box], "area": round(box[2] * box[3], 3), "iscrowd": 0,
                }  # fmt: skip
                stream.write(("," if number or place else "") + json.dumps(found) + "\n")
        stream.write("]}\n")
    _make_old(path)


class Part(ABC):
    """Something to send, and what has to come of it; made and measured by two processes."""

    def __init__(self, folder: Path, scale: float) -> None:
        """Take an empty folder, or the one that ``prepare`` has filled."""
        self.folder, self.scale = folder, scale

    @abstractmethod
    def prepare(self) -> None:
        """Write everything that is sent."""

    @abstractmethod
    def run(self) -> str:
        """Do the timed work and say what came of it.

        Raises:
            RuntimeError: it is not what was sent.
        """


class InboxPart(Part):
    """Many files, one an image."""

    @property
    def campaign(self) -> InboxCampaign:
        """The same in both processes."""
        return InboxCampaign(self.folder, round(_NUM_FILES * self.scale))

    def prepare(self) -> None:
        campaign = self.campaign
        campaign.create()
        campaign.send("data.yaml", "names:\n" + "".join(f"- {name}\n" for name in _CLASSES))
        lines = []
        for place, (x, y, width, height) in enumerate(_grid_boxes(_BOXES_PER_FILE)):
            values = (x + width / 2, y + height / 2, width, height)
            lines.append(f"{place} " + " ".join(f"{value / _SIDE_PX:.6f}" for value in values))
        for image_id in campaign.image_ids:
            campaign.send(f"{image_id}.txt", "\n".join(lines) + "\n")

    def run(self) -> str:
        found, number = self.campaign.collect(), len(self.campaign.image_ids)
        _require(found, CollectedLabels(number, _BOXES_PER_FILE * number, 0))
        return str(found)


class InboxAgainPart(InboxPart):
    """The same files, whose labels are stored."""

    def prepare(self) -> None:
        super().prepare()
        self.campaign.store()

    def run(self) -> str:
        _require(self.campaign.collect(), CollectedLabels(0, 0, 0))
        return "nothing new"


class CocoInboxPart(Part):
    """One large document in an inbox: an export of the whole project, of which the batch is a small part."""

    @property
    def _names(self) -> list[str]:
        number = round(_COCO_MB * 1e6 * self.scale / _BYTES_PER_BOX / _BOXES_PER_IMAGE)
        own = [f"{image_id}.png" for image_id in InboxCampaign(self.folder, _NUM_COCO_IMAGES).image_ids]
        return [*own, *(f"foreign-{place:06d}.png" for place in range(number - len(own)))]

    def prepare(self) -> None:
        campaign = InboxCampaign(self.folder, _NUM_COCO_IMAGES)
        campaign.create()
        _write_coco(campaign.inbox / "labels.json", self._names, _BOXES_PER_IMAGE)

    def run(self) -> str:
        campaign = InboxCampaign(self.folder, _NUM_COCO_IMAGES)
        found = campaign.collect()
        _require(found, CollectedLabels(_NUM_COCO_IMAGES, _NUM_COCO_IMAGES * _BOXES_PER_IMAGE, 1))
        return f"{(campaign.inbox / 'labels.json').stat().st_size / 1e6:.0f} MB: {found}"


class CocoInitPart(Part):
    """One large document at the start of a campaign."""

    @property
    def _num_images(self) -> int:
        return round(_NUM_INIT_IMAGES * self.scale)

    @property
    def _document(self) -> Path:
        return self.folder / "labels.json"

    def prepare(self) -> None:
        names = [image_name(number) for number in range(self._num_images)]
        _write_coco(self._document, names, _BOXES_PER_IMAGE, height_px=480)

    def run(self) -> str:
        from tasks.data.dataset_source import DatasetSource
        from tasks.data.initial_split import CampaignPlan, create_campaign_data
        from tasks.data.paths import Workspace

        images = UnopenedImages(self._num_images)
        source = DatasetSource("coco", self._document, images)  # type: ignore[arg-type]
        plan = CampaignPlan(
            seed=1, seed_images=1000, calibration_images=100, val_frac=0.05, oracle=True,
            imported_at="2026-01-01T00:00:00+00:00", max_pixels=10**8,
        )  # fmt: skip
        boxes = create_campaign_data(source, plan, Workspace(self.folder / "campaign")).counts["boxes"]
        _require(boxes, self._num_images * _BOXES_PER_IMAGE)
        return f"{self._document.stat().st_size / 1e6:.0f} MB: {self._num_images:,} images, {boxes:,} boxes"


class BoxesPart(Part):
    """One image with as many boxes as a tool that went wrong writes."""

    def prepare(self) -> None:
        campaign = InboxCampaign(self.folder, 1)
        campaign.create()
        _write_coco(campaign.inbox / "labels.json", [f"{campaign.image_ids[0]}.png"], round(_NUM_BOXES * self.scale))

    def run(self) -> str:
        found = InboxCampaign(self.folder, 1).collect()
        _require(found, CollectedLabels(1, round(_NUM_BOXES * self.scale), 0))
        return str(found)


class ExportPart(Part):
    """An export of everything, of which little is asked for."""

    def prepare(self) -> None:
        campaign = InboxCampaign(self.folder, _NUM_OWN)
        campaign.create()
        foreign = [f"foreign-{number:06d}.png" for number in range(round(_NUM_FOREIGN * self.scale))]
        _write_coco(campaign.inbox / "project.json", [*(f"{name}.png" for name in campaign.image_ids), *foreign], 2)

    def run(self) -> str:
        found = InboxCampaign(self.folder, _NUM_OWN).collect()
        _require(found, CollectedLabels(_NUM_OWN, 2 * _NUM_OWN, 1))
        return str(found)


class AssemblePart(Part):
    """A large pool and many labels."""

    def prepare(self) -> None:
        import pyarrow as pa

        from infra.bench.memory import create_campaign, replace_prepare
        from tasks.data.schemas import POOL, Box, LabelBatch, LabeledImage
        from tasks.storage import files

        workspace = create_campaign(self.folder, 1000, with_images=False)
        replace_prepare(workspace)
        path = workspace.derived("prepare") / "pool.parquet"
        pool = files.read_table(path, POOL)
        number = round(_NUM_POOL * self.scale)
        columns = {name: pa.repeat(pool[name][0], number) for name in POOL.names}
        columns["image_id"] = pa.array([f"f{n:015x}" for n in range(number)])
        files.write_table(path, pa.concat_tables([pool, pa.table(columns, schema=POOL)]))
        boxes = tuple(Box(category=_CLASSES[n], xyxy_px=(n, n, n + 30, n + 30)) for n in range(10))
        labels = tuple(
            LabeledImage(
                image_id=f"f{n:015x}", status="labeled", boxes=boxes, annotator="ann",
                finished_at="2026-01-02T00:00:00+00:00", seconds_spent=30.0, offered_batch=1,
            )
            for n in range(round(_NUM_LABELED * self.scale))
        )  # fmt: skip
        batch = LabelBatch(batch=1, provider="bench", collected_at="2026-01-02T00:00:00+00:00", images=labels)
        files.write_json(workspace.label_batch(1), batch.model_dump(mode="json"))

    def run(self) -> str:
        from tasks.assemble import main
        from tasks.storage import files

        root = self.folder / "campaign"
        os.chdir(root)
        main()
        summary = files.read_json(root / "derived" / "assemble" / "summary.json")
        number = round(_NUM_LABELED * self.scale)
        if summary["labels"] < number:
            raise RuntimeError(f"labels are {summary['labels']}, expected at least {number}")
        return f"{summary['pool_images']:,} images, {summary['labels']:,} labels, {summary['boxes']:,} boxes"


PARTS: dict[str, type[Part]] = {
    "inbox": InboxPart,
    "inbox-again": InboxAgainPart,
    "coco-inbox": CocoInboxPart,
    "coco-init": CocoInitPart,
    "boxes": BoxesPart,
    "export": ExportPart,
    "assemble": AssemblePart,
}


def _require(found: object, expected: object) -> None:
    if found != expected:
        raise RuntimeError(f"what came in is {found}, expected {expected}")


def _make_old(path: Path) -> None:
    os.utime(path, (time.time() - _OLD_S,) * 2)


def measure(name: str, scale: float) -> LoadCost:
    """Prepare and run a part, each in a process of its own.

    Raises:
        RuntimeError: a process failed; carries the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as folder:
        for step in ("prepare", "run"):
            command = [sys.executable, "-W", "ignore", "-m", "infra.bench.load", name, "--scale", str(scale)]
            command += ["--step", step, "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name}, {step}: {done.stderr[-2000:]}")
    return LoadCost(**json.loads(done.stdout.splitlines()[-1]))


def run_step(part: Part, step: str) -> None:
    """Do one of the two steps in this process; the figures go to the standard output as JSON."""
    if step == "prepare":
        part.prepare()
        return
    for module in ("flows.annotation.collect", "flows.annotation.providers.folder", "tasks.assemble"):
        importlib.import_module(module)  # is not counted, nor is the start of Python

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = part.run()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print()
    print(json.dumps(asdict(LoadCost(wall_s, cpu_s, peak_mib, result))))


def main() -> int:
    """Measure and print; 1 where a bar is missed.

    Raises:
        RuntimeError: a part failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all where none is named")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sizes")
    parser.add_argument("--step", choices=["prepare", "run"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(PARTS[options.parts[0]](options.folder, options.scale), options.step)
        return 0
    table = Table("part", "result", "wall s", "processor s", "peak MiB", "bar")
    missed = []
    for name in options.parts or PARTS:
        cost, bar = measure(name, options.scale), BARS[name]
        table.add_row(name, cost.result, f"{cost.wall_s:.1f}", f"{cost.cpu_s:.1f}", f"{cost.peak_mib:,.0f}", str(bar))
        if not bar.is_met(cost):
            missed.append(name)
    console = Console()
    console.print(table)
    console.print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if missed:
        console.print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
