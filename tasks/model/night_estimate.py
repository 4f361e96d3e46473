"""``python -m tasks.model.night_estimate``: how long a night will take on this machine, from a few measured steps.

Reads params.yaml, the pool's index, labels, validation images and data/warm_start; writes only to a temporary folder.
Prints one JSON object. A process of its own, because ``flows`` hold no tensors.
"""

import itertools
import json
import logging
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from detectron_ext.distributed import num_devices
from tasks.data import schemas
from tasks.data.images import inspect_image
from tasks.data.label_store import read_labels
from tasks.data.paths import Workspace, resolve_uri
from tasks.model.detector import ImageReader, default_device, detect_all, new_detector
from tasks.params import Params, load_params
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import set_pdeathsig
from tasks.storage import files
from tasks.storage.s3 import is_object_uri
from tasks.train import train_worker

_STEPS = 4  # of each kind; the first of a kind pays for memory and kernels
_MAX_IMAGES = 64
_MIN_BATCHES = 4
_BATCH_SIZES = ("labeled_batch_size", "unlabeled_batch_size")
_STEP_MESSAGE = re.compile(r"train (pretraining )?\d+/\d+ ")


class _StepTimes(logging.Handler):
    """Notes when ``train`` reports a step; it reports each one of a training this short."""

    def __init__(self) -> None:
        super().__init__()
        self.ends_s: list[float] = []
        self.pretraining_ends_s: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        step = _STEP_MESSAGE.match(record.getMessage())
        if step is not None:
            (self.pretraining_ends_s if step[1] else self.ends_s).append(time.monotonic())


def estimate_night(workspace: Workspace, params: Params) -> dict[str, Any]:
    """Measure training steps, inference and decoding of the campaign's own detector on its validation images.

    Args:
        workspace: a campaign.
        params: all sections.

    Returns:
        device; measured: seconds per step and image, with how many of each; counts: what they are multiplied by;
        minutes: by stage, of the stages that grow with images and iterations, and their total.

    Raises:
        UserError: weights or images are missing or broken, or memory ran out.
    """
    images = files.read_table(workspace.val, schemas.ANNOTATED).slice(0, _MAX_IMAGES)
    if not images.num_rows:
        raise UserError(workspace.val, "validation images are 0, expected at least 1")
    startup_s, supervised_s, semi_supervised_s, pretraining_step_s = _time_training(workspace, params, images)
    pretraining_s = params.train.pretrain_iterations * pretraining_step_s
    rows = images.select(["image_id", "uri"]).to_pylist()
    image_s, num_inferred = _time_inference(workspace, params, rows)
    decode_s = _time_decoding(workspace, params, rows)
    return {
        "device": torch.cuda.get_device_name() if default_device() == "cuda" else "the CPU",
        "gpus": num_devices() if default_device() == "cuda" else 0,
        "measured": {
            "training_startup_s": round(startup_s, 2),
            "supervised_step_s": round(supervised_s, 4),
            "semi_supervised_step_s": round(semi_supervised_s, 4),
            "steps": 2 * _STEPS,
            **({"pretraining_step_s": round(pretraining_step_s, 4)} if pretraining_step_s else {}),
            "inference_image_s": round(image_s, 4),
            "inferred_images": num_inferred,
            "decoded_image_s": round(decode_s, 5),
        },
        **_multiply(workspace, params, startup_s + pretraining_s, supervised_s, semi_supervised_s, image_s, decode_s),
    }


def _time_training(workspace: Workspace, params: Params, images: Any) -> tuple[float, float, float, float]:
    """Seconds before the first step, of a supervised step, of one with unlabeled images, and of one of pretraining.

    The last is 0 where the round is not pretrained, and no part of the first.

    On several GPUs one of them is measured, with its share of a batch.
    """
    share = {name: getattr(params.train, name) // num_devices() for name in _BATCH_SIZES}
    if params.train.pretrain_iterations:
        share["pretrain_batch_size"] = params.train.pretrain_batch_size // num_devices()
    schedule = {"iterations": 2 * _STEPS, "burn_in_iterations": _STEPS, "warmup_iterations": 0}
    schedule["pretrain_iterations"] = min(params.train.pretrain_iterations, _STEPS)
    short = params.model_copy(update={"train": params.train.model_copy(update=schedule | share)})
    times = _StepTimes()
    logger = logging.getLogger("tasks")
    with tempfile.TemporaryDirectory(prefix="gleaner-night-") as folder:
        scratch = Path(folder)
        files.write_table(scratch / "assembled" / "labeled.parquet", images)
        unlabeled = images.select(schemas.UNLABELED.names).cast(schemas.UNLABELED)
        files.write_table(scratch / "assembled" / "unlabeled.parquet", unlabeled)
        files.write_table(scratch / "assembled" / "calibration.parquet", images.slice(0, 0))
        level = logger.level
        logger.addHandler(times)
        logger.setLevel(logging.INFO)
        started_s = time.monotonic()
        try:
            train_worker(
                short,  # type: ignore[arg-type]  # has every section that the stage declares
                workspace.root,
                scratch / "assembled",
                workspace.warm_start,
                scratch / "scratch",
                scratch / "out",
            )
        finally:
            logger.removeHandler(times)
            logger.setLevel(level)
    steps_s = [end - start for start, end in itertools.pairwise(times.ends_s)]
    supervised_s = statistics.median(steps_s[: _STEPS - 1])
    pretraining_steps_s = [end - start for start, end in itertools.pairwise(times.pretraining_ends_s)]
    pretraining_step_s = statistics.median(pretraining_steps_s) if pretraining_steps_s else 0.0
    startup_s = times.ends_s[0] - started_s - supervised_s - len(times.pretraining_ends_s) * pretraining_step_s
    return startup_s, supervised_s, statistics.median(steps_s[_STEPS:]), pretraining_step_s


def _time_inference(workspace: Workspace, params: Params, rows: Sequence[dict[str, str]]) -> tuple[float, int]:
    """Seconds per image, decoding included, after a first batch; and how many images were timed."""
    detector = new_detector(params.model, len(params.classes), params.ssl.focal_gamma, workspace.root, default_device())
    detector.eval()
    read = ImageReader(workspace.root, rows)
    batch_size = params.infer.batch_size
    repeats = -(-_MIN_BATCHES * batch_size // len(rows))
    detections = detect_all(
        [detector],
        [*rows] * repeats,
        lambda image: read(image["uri"]),
        params.model,
        batch_size=batch_size,
        mixed_precision=params.train.mixed_precision,
    )
    ends_s = [time.monotonic() for _ in detections]
    warm = min(batch_size, len(ends_s) - 1)
    return (ends_s[-1] - ends_s[warm - 1]) / (len(ends_s) - warm), len(ends_s) - warm


def _time_decoding(workspace: Workspace, params: Params, rows: Sequence[dict[str, str]]) -> float:
    """Seconds per image on all cores, as ``prepare`` reads them; 0 for images of an object store."""
    paths = [resolve_uri(workspace.root, row["uri"]) for row in rows if not is_object_uri(row["uri"])]
    started_s = time.monotonic()
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda path: inspect_image(path, max_pixels=params.prepare.max_pixels), paths))
    return (time.monotonic() - started_s) / max(len(paths), 1)


def _multiply(
    workspace: Workspace,
    params: Params,
    startup_s: float,
    supervised_s: float,
    semi_supervised_s: float,
    image_s: float,
    decode_s: float,
) -> dict[str, Any]:
    pool = files.read_table(workspace.index, schemas.INDEX, columns=["image_id"])["image_id"].to_pylist()
    num_val = files.read_table(workspace.val, schemas.ANNOTATED, columns=["image_id"]).num_rows
    num_labeled = len(read_labels(workspace.labels).current)
    has_unlabeled = params.ssl.enabled and params.train.unlabeled_batch_size > 0
    burn_in = params.train.burn_in_iterations if has_unlabeled else params.train.iterations
    after_burn_in = params.train.iterations - burn_in
    is_scored = after_burn_in > 0 and params.ssl.weights_from == "burn_in"
    num_scored = min(params.ssl.max_scored_images, len(pool)) if is_scored else 0
    training_s = startup_s + burn_in * supervised_s + after_burn_in * semi_supervised_s + num_scored * image_s
    num_members = 1 if params.infer.committee == "none" else 2
    minutes = {
        "prepare": len(pool) * decode_s / 60,
        "train": training_s / 60,
        "evaluate": 2 * num_val * image_s / 60,
        "infer": num_members * len(pool) * image_s / 60,
    }
    counts = {
        "pool_images": len(pool),
        "labeled_images": num_labeled,
        "validation_images": num_val,
        "supervised_steps": burn_in,
        "semi_supervised_steps": after_burn_in,
        "scored_images": num_scored,
    }
    rounded = {stage: round(value, 2) for stage, value in minutes.items()}
    return {"counts": counts, "minutes": rounded, "total_minutes": round(sum(minutes.values()), 2)}


def main() -> None:
    """Estimate the night of the campaign in the current folder."""
    logging.disable(logging.DEBUG)
    logging.getLogger("tasks").propagate = False
    set_pdeathsig()
    workspace = Workspace(Path.cwd())
    try:
        result = estimate_night(workspace, load_params(workspace.params))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
