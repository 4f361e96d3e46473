"""What ``infra.bench.speed`` times of this project at commit 040f42d; runs with that commit's code on the path."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from timed_functions import serve  # type: ignore[import-not-found]  # beside this file

NUM_STEPS = 4


def main(folder: Path, checkout: Path) -> None:
    """Serve; arguments: folder of ``write_images`` with ``warm_start``, root of the checkout."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    serve(timed_functions(folder, checkout))


def timed_functions(folder: Path, checkout: Path) -> dict[str, Callable[[], object]]:
    """Return the functions to time, by name; everything as that commit's stages did it."""
    # Modules of another version: there is nothing to check their types against.
    train, detector = (importlib.import_module(f"tasks.{name}") for name in ("train", "detector"))
    batches_module, views = (importlib.import_module(f"detectron_ext.{name}") for name in ("batches", "views"))
    params = bench_params(checkout)
    rows = json.loads((folder / "rows.json").read_text())
    run = train._networks(params, folder, folder / "warm_start")
    labeled, unlabeled = (detector.examples_of(_table(rows[kind])) for kind in ("labeled", "unlabeled"))
    dataset = batches_module.TrainingBatches(
        labeled,
        unlabeled,
        detector.image_reader(folder, rows["labeled"] + rows["unlabeled"]),
        views.ViewSpec(params.model.short_side_px, params.model.long_side_px, **params.views.model_dump()),
        batch_sizes=(params.train.labeled_images_per_step, params.train.unlabeled_images_per_step),
        burn_in_iterations=0,
        seed=params.seed,
    )
    batches = [dataset[iteration] for iteration in range(NUM_STEPS)]
    weights = folder / "teacher_040f42d.pth"
    torch.save(run.teacher.state_dict(), weights)
    teacher = detector.load_detector(params.model, len(params.classes), weights)

    def infer() -> None:
        read = detector.image_reader(folder, rows["unlabeled"], ahead=True)
        size, images = params.infer.images_per_batch, rows["unlabeled"]
        chunks = [images[first : first + size] for first in range(0, len(images), size)]
        for _, pixels in detector.read_ahead(chunks, lambda image: read(image["uri"])):
            detector.detect(teacher, pixels, params.model)

    return {"step": lambda: [run.step(batch) for batch in batches], "inference": infer}


def bench_params(checkout: Path) -> Any:
    """Return the commit's parameters, past burn-in and almost without learning."""
    params = importlib.import_module("tasks.params").load_params(checkout / "params.yaml")
    schedule = {"iterations": 10**6, "burn_in_iterations": 0, "warmup_iterations": 0, "learning_rate": 1e-6}
    schedule |= {"labeled_images_per_step": 4, "unlabeled_images_per_step": 2}
    ssl = {"max_loss_ratio": 1e9, "pseudo_threshold": 0.3}
    return params.model_copy(
        update={"train": params.train.model_copy(update=schedule), "ssl": params.ssl.model_copy(update=ssl)}
    )


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{**row, "classes": row.get("class_ids", [])} for row in rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
