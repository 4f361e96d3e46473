"""Join all label batches into labeled, unlabeled, validation and calibration sets that share no image.

Reads  data/labels, data/val.parquet, data/calibration.parquet, derived/prepare
Writes derived/assemble
Params classes, assemble
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.annotations import AnnotatedImage, read_annotated, write_annotated
from tasks.data.label_store import LabelStore, check_annotation, read_labels
from tasks.data.paths import Workspace
from tasks.data.row_order import sort_by_image
from tasks.data.schemas import POOL, UNLABELED
from tasks.params import load_stage_params
from tasks.params.stages import AssembleParams
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import stage_main
from tasks.storage import files

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pool:
    """Hold the usable images, schemas.UNLABELED by image id, and the ids of those that ``prepare`` set aside."""

    table: pa.Table
    rejected: frozenset[str]

    def rows(self, image_ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the rows of those images that are in the pool, by image id."""
        return {row["image_id"]: row for row in self.table.filter(self._is_in(image_ids)).to_pylist()}

    def without(self, image_ids: Collection[str]) -> pa.Table:
        """Return all other images, schemas.UNLABELED."""
        return self.table.filter(pc.invert(self._is_in(image_ids)))

    def _is_in(self, image_ids: Collection[str]) -> pa.ChunkedArray:
        return pc.is_in(self.table["image_id"], value_set=pa.array(sorted(image_ids), pa.string()))


def assemble(
    params: AssembleParams,
    *,
    classes: Sequence[str],
    labels: Path,
    val: Path,
    calibration: Path,
    prepared: Path,
    out: Path,
) -> None:
    """Write ``labeled``, ``val``, ``calibration`` (ANNOTATED), ``unlabeled`` (UNLABELED), ``summary.json``.

    ``leased.json`` lists the unlabeled images that are with the annotators.

    Args:
        params: what becomes of empty images.
        classes: class names in the order of their indices.
        labels: folder of label batches; the newest answer to an image counts.
        val: the fixed validation set, schemas.ANNOTATED.
        calibration: labeled images that are never trained on, schemas.ANNOTATED.
        prepared: output folder of ``prepare``.
        out: folder of the results.

    Raises:
        UserError: a file breaks its contract, an image is in two of the sets, a class is unknown, or there is
            not one box to learn from or to measure on; names the file.
    """
    pool = _read_pool(prepared)
    store = read_labels(labels)
    listed_val = read_annotated(val, classes)
    calibration_images = read_annotated(calibration, classes)
    _check_leakage(store, listed_val, calibration_images, val, calibration)
    usable_ids = pool.rows({image.image_id for image in calibration_images}).keys()
    calibration_images = [image for image in calibration_images if image.image_id in usable_ids]
    val_images = _usable_val(listed_val, prepared)
    reviewed = _reviewed_images(store, pool, classes)
    _require_boxes(reviewed, labels, "Label some images first.")
    _require_boxes(val_images, val, "Make the campaign anew with another validation set.")
    labeled = [image for image in reviewed if not image.is_empty or params.empty_images == "keep"]
    used_ids = {image.image_id for image in (*listed_val, *calibration_images)} | set(store.current)
    unlabeled = pool.without(used_ids)
    for name, images in (("labeled", labeled), ("val", val_images), ("calibration", calibration_images)):
        write_annotated(out / f"{name}.parquet", images, classes)
    files.write_table(out / "unlabeled.parquet", unlabeled)
    leased = pc.is_in(unlabeled["image_id"], value_set=pa.array(sorted(store.leased), pa.string()))
    files.write_json(out / "leased.json", unlabeled["image_id"].filter(leased).to_pylist())
    summary = _summary(store, reviewed, calibration_images, classes)
    summary |= {
        "unlabeled_images": unlabeled.num_rows,
        "val_images": len(val_images),
        "val_images_set_aside": len(listed_val) - len(val_images),
        "pool_images": pool.table.num_rows,
    }
    files.write_json(out / "summary.json", summary)
    _log.info("round %(round)d: %(labels)d labels, %(boxes)d boxes, %(unlabeled_images)d unlabeled", summary)


def _require_boxes(images: Iterable[AnnotatedImage], where: Path, fix: str) -> None:
    if not any(image.boxes for image in images):
        raise UserError(where, "boxes in all of its images are 0, expected at least 1", fix)


def _read_pool(prepared: Path) -> _Pool:
    table = sort_by_image(files.read_table(prepared / "pool.parquet", POOL, columns=UNLABELED.names))
    rejected = frozenset(entry["item"] for entry in files.read_json(prepared / "quarantine.json"))
    return _Pool(table, rejected)


def _usable_val(images: Sequence[AnnotatedImage], prepared: Path) -> list[AnnotatedImage]:
    """Return the validation images that ``prepare`` found usable."""
    usable_ids = set(files.read_table(prepared / "val.parquet", UNLABELED)["image_id"].to_pylist())
    if len(usable_ids) < len(images):
        _log.warning("validation images set aside by prepare: %d of %d", len(images) - len(usable_ids), len(images))
    return [image for image in images if image.image_id in usable_ids]


def _check_leakage(
    store: LabelStore,
    val_images: Iterable[AnnotatedImage],
    calibration_images: Iterable[AnnotatedImage],
    val: Path,
    calibration: Path,
) -> None:
    """Refuse validation images that are also trained on: the measured mAP would say nothing about new images."""
    heldout_file: dict[str, Path] = {}
    for path, images in ((val, val_images), (calibration, calibration_images)):
        for image in images:
            if image.image_id in heldout_file:
                other = heldout_file[image.image_id].name
                problem = f"image {image.image_id} is also in {other}, expected it once"
                raise UserError(path, problem, "Restore both files from git.")
            heldout_file[image.image_id] = path
    for image_id, annotation in store.current.items():
        if image_id in heldout_file:
            problem = f"image {image_id} is also in {heldout_file[image_id].name}, expected it once"
            raise UserError(annotation.file, problem, "Training on it would leak: restore both files from git.")


def _reviewed_images(store: LabelStore, pool: _Pool, classes: Sequence[str]) -> list[AnnotatedImage]:
    """Return the reviewed images with their boxes; an image without boxes has empty lists."""
    reviewed = []
    rows = pool.rows(store.current)
    sizes_px = {image_id: (row["width_px"], row["height_px"]) for image_id, row in rows.items()}
    for image_id, annotation in store.current.items():
        if image_id in pool.rejected:
            _log.warning("%s: image %s was set aside by prepare, its labels wait", annotation.file.name, image_id)
            continue
        if image_id not in rows:
            problem = f"image {image_id} is unknown, expected an image of the pool"
            raise UserError(annotation.file, problem, "Restore the file and data/index.parquet (git, dvc checkout).")
        check_annotation(annotation, sizes_px, classes)
        if annotation.label.status != "skipped":
            uri, size_px = rows[image_id]["uri"], sizes_px[image_id]
            boxes, crowd_regions = annotation.label.boxes, annotation.label.crowd_regions
            reviewed.append(AnnotatedImage(image_id, uri, *size_px, boxes, annotation.batch, crowd_regions))
    return reviewed


def _summary(
    store: LabelStore,
    reviewed: Sequence[AnnotatedImage],
    calibration_images: Sequence[AnnotatedImage],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Count labels and boxes. Calibration images cost labels too, so ``labels`` and ``boxes`` include them."""
    boxes = Counter(box.category for image in (*reviewed, *calibration_images) for box in image.boxes)
    labeled = sum(not image.is_empty for image in reviewed)
    return {
        "round": store.newest_batch,
        "labels": len(reviewed) + len(calibration_images),
        "labeled_images": labeled,
        "empty_images": len(reviewed) - labeled,
        "skipped_images": sum(answer.label.status == "skipped" for answer in store.current.values()),
        "calibration_images": len(calibration_images),
        "boxes": boxes.total(),
        "boxes_per_class": {name: boxes[name] for name in classes},
        "crowd_regions": sum(len(image.crowd_regions) for image in (*reviewed, *calibration_images)),
        "minutes_spent": store.minutes_spent,
        "checked_labels": len(store.checks),
        "changed_labels": sum(store.checks.values()),
    }


def _body(workspace: Workspace) -> None:
    sections = load_stage_params(workspace.params, "classes", "assemble")
    assemble(
        sections.assemble,
        classes=sections.classes,
        labels=workspace.labels,
        val=workspace.val,
        calibration=workspace.calibration,
        prepared=workspace.derived("prepare"),
        out=workspace.derived("assemble"),
    )


def main() -> None:
    """Run the stage in the current folder."""
    stage_main("assemble", _body)


if __name__ == "__main__":
    main()
