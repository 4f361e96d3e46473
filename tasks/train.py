"""Train teacher and student on the labels, with every unlabeled image taking part by its own weight.

Reads  data/images, data/previous, derived/assemble
Writes derived/train
Params seed, classes, model, train, views, ssl
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from detectron_ext.batches import TrainingBatches
from detectron_ext.distributed import any_process, is_first, num_processes, rank, wait_for_all
from detectron_ext.meta_arch import weights_of
from detectron_ext.pseudo_labels import ScoreThreshold
from detectron_ext.trainer import ImageWeighting, Schedule, StepLog, TeacherStudent, TrainingDiverged
from detectron_ext.views import ViewSpec
from tasks import contracts, files
from tasks.checkpoint import Checkpoint, write_state
from tasks.detector import default_device, examples_of, image_reader, load_weights_file, new_detector
from tasks.devices import on_all_devices
from tasks.entry import batch_divisor, run_stage
from tasks.errors import GuardRailError, UserError
from tasks.params import Sections, load
from tasks.paths import Workspace
from tasks.pool_images import loader_errors
from tasks.sections import SslParams, TrainParams

log = logging.getLogger(__name__)
_PROGRESS_LINES = 12


def train(params: Sections, *, root: Path, assembled: Path, previous: Path, scratch: Path, out: Path) -> None:
    """Train one round's networks and write teacher.pth, student.pth, curves.parquet and summary.json.

    Args:
        params: sections seed, classes, model, train, views, ssl.
        root: folder that image uris are relative to.
        assembled: output of assemble.
        previous: what the round before handed over.
        scratch: checkpoints; a run with the same inputs goes on from the newest.
        out: output folder.

    Raises:
        UserError: no labels, or parameters that name no usable model.
        GuardRailError: training left its bounds; nothing is written.
    """
    on_all_devices("train", train_on_device, params, root, assembled, previous, scratch, out)


def train_on_device(params: Sections, root: Path, assembled: Path, previous: Path, scratch: Path, out: Path) -> None:
    """``train`` as one of several processes, or as the only one; the first of them writes."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    labeled = examples_of(files.read_table(assembled / "labeled.parquet", contracts.ANNOTATED))
    unlabeled = examples_of(files.read_table(assembled / "unlabeled.parquet", contracts.UNLABELED))
    if not labeled:
        raise UserError(assembled / "labeled.parquet", "labeled images are 0, expected at least 1")
    _require_even_shares(params.train)
    run = _networks(params, root, previous)
    batches = TrainingBatches(
        labeled,
        unlabeled if params.ssl.enabled else [],
        image_reader(root, [{"uri": one.uri, "image_id": one.image_id} for one in (*labeled, *unlabeled)]),
        ViewSpec(params.model.short_side_px, params.model.long_side_px, **params.views.model_dump()),
        batch_sizes=(params.train.labeled_images_per_step, params.train.unlabeled_images_per_step),
        burn_in_iterations=params.train.burn_in_iterations,
        seed=params.seed,
        rank=rank(),
        world_size=num_processes(),
    )
    checkpoint = Checkpoint(scratch, key=_input_key(params, assembled, previous))
    logs = checkpoint.load(run)
    with loader_errors("train"):
        logs += _iterate(run, batches, params.train, checkpoint, logs)
    if is_first():
        _write(run, logs, params, len(labeled), len(unlabeled), out)
        checkpoint.forget()


def _require_even_shares(params: TrainParams) -> None:
    devices = num_processes()
    for name in ("labeled_images_per_step", "unlabeled_images_per_step"):
        if getattr(params, name) % devices:
            problem = f"train.{name} is {getattr(params, name)}, expected a multiple of the {devices} GPUs"
            raise UserError("params.yaml", problem, "Or choose fewer GPUs by CUDA_VISIBLE_DEVICES.")


def _networks(params: Sections, root: Path, previous: Path) -> TeacherStudent:
    device, ssl = default_device(), params.ssl
    torch.manual_seed(params.seed)
    student, teacher = (
        new_detector(params.model, len(params.classes), ssl.focal_gamma, root, device) for _ in range(2)
    )
    if params.train.initialisation == "previous" and (previous / "teacher.pth").is_file():
        load_weights_file(student, previous / "teacher.pth")
    teacher.load_state_dict(student.state_dict())
    class_weights = files.read_json(previous / "class_weights.json")
    student.set_class_weights(torch.tensor([class_weights.get(name, 1.0) for name in params.classes]))
    if params.train.channels_last:
        student.to(memory_format=torch.channels_last)
        teacher.to(memory_format=torch.channels_last)
    return TeacherStudent(
        student,
        teacher,
        _schedule(params.train, ssl),
        _image_weighting(previous / "uncertainty.parquet", ssl),
        ScoreThreshold(
            ssl.pseudo_threshold_mode, ssl.pseudo_threshold, len(params.classes), unsure_score=ssl.unsure_score
        ),
        ssl.pseudo_box_regression,
        params.train.mixed_precision,
        params.seed,
        micro_batches=batch_divisor(),
    )


def _schedule(train_params: TrainParams, ssl: SslParams) -> Schedule:
    return Schedule(
        iterations=train_params.iterations,
        burn_in=train_params.burn_in_iterations,
        warmup=train_params.warmup_iterations,
        ramp=ssl.ramp_iterations,
        learning_rate=train_params.learning_rate,
        final_learning_rate_frac=train_params.final_learning_rate_frac,
        weight_decay=train_params.weight_decay,
        gradient_clip_norm=train_params.gradient_clip_norm,
        lambda_unsup=ssl.lambda_unsup,
        ema_decay=ssl.ema_decay,
        max_loss_ratio=ssl.max_loss_ratio,
    )


def _image_weighting(uncertainty: Path, ssl: SslParams) -> ImageWeighting:
    """z_j from the round before; the first round has none, so every image weighs sigmoid(0) = 0.5."""
    table = files.read_table(uncertainty, contracts.UNCERTAINTY)
    z = table["uncertainty"].to_numpy().astype(np.float64)
    if ssl.weight_standardise and len(z):
        z = (z - z.mean()) / max(float(z.std()), 1e-6)
    return ImageWeighting(dict(zip(table["image_id"].to_pylist(), z.tolist(), strict=True)), ssl.weight_direction)


def _iterate(
    run: TeacherStudent,
    batches: TrainingBatches,
    params: TrainParams,
    checkpoint: Checkpoint,
    before: list[StepLog],
) -> list[StepLog]:
    logs: list[StepLog] = []
    checkpoint.leave_on_signal()
    every = max(params.iterations // _PROGRESS_LINES, 1)
    for batch in batches.iterate(run.iteration, params.iterations, params.loader_workers):
        try:
            entry = run.step(batch)
        except TrainingDiverged as error:
            raise GuardRailError("train", str(error), "Lower ssl.lambda_unsup or train.learning_rate.") from None
        logs.append(entry)
        if entry.iteration % every == 0:
            log.info(
                "train %d/%d  supervised %.3f  unsupervised %.3f  pseudo-boxes %.1f an image",
                entry.iteration,
                params.iterations,
                entry.loss_sup,
                entry.loss_unsup,
                entry.pseudo_boxes_per_image,
            )
        leave = any_process(checkpoint.leave_requested)
        if is_first() and (leave or entry.iteration % params.checkpoint_every_iterations == 0):
            checkpoint.save(run, before + logs)
        if leave:
            wait_for_all()  # the first to go takes the others with it
            checkpoint.leave(entry.iteration)
    return logs


def _write(
    run: TeacherStudent,
    logs: list[StepLog],
    params: Sections,
    num_labeled: int,
    num_unlabeled: int,
    out: Path,
) -> None:
    digests = {}
    for name, network in (("teacher", run.teacher), ("student", run.student)):
        write_state(weights_of(network), out / f"{name}.pth")
        digests[f"{name}_sha256"] = files.sha256_file(out / f"{name}.pth")
    curves = [_row(entry) for entry in logs]
    files.write_table(out / "curves.parquet", pa.Table.from_pylist(curves))
    tail = logs[-max(len(logs) // 5, 1) :]
    with_pseudo = [entry for entry in tail if entry.lambda_unsup > 0]

    def mean(name: str, entries: list[StepLog]) -> float:
        return round(float(np.mean([getattr(entry, name) for entry in entries])), 6) if entries else 0.0

    summary: dict[str, Any] = {
        "iterations": run.iteration,
        "initialisation": params.train.initialisation,
        "micro_batches": run.micro_batches,
        "labeled_images": num_labeled,
        "unlabeled_images": num_unlabeled,
        "loss_sup": mean("loss_sup", tail),
        "loss_unsup": mean("loss_unsup", with_pseudo),
        "pseudo_boxes_per_image": mean("pseudo_boxes_per_image", with_pseudo),
        "pseudo_boxes_per_image_by_class": _by_class(with_pseudo, params.classes),
        "mean_image_weight": mean("mean_image_weight", with_pseudo),
        "loss_ratio": round(run.loss_ratio, 6),
        **digests,
    }
    files.write_json(out / "summary.json", summary)


def _row(entry: StepLog) -> dict[str, float]:
    row = asdict(entry) | {"pseudo_boxes_per_image": entry.pseudo_boxes_per_image}
    del row["pseudo_boxes_K"]
    return row


def _by_class(entries: list[StepLog], classes: list[str]) -> dict[str, float]:
    mean_K = np.mean([entry.pseudo_boxes_K for entry in entries], axis=0) if entries else np.zeros(len(classes))
    return {name: round(float(mean), 6) for name, mean in zip(classes, mean_K, strict=True)}


def _input_key(params: Sections, assembled: Path, previous: Path) -> str:
    """Digest of everything that decides the result, so that a checkpoint of other inputs is never used."""
    import detectron_ext

    sections = {name: getattr(params, name).model_dump() for name in ("model", "train", "views", "ssl")} | {
        "seed": params.seed,
        "classes": params.classes,
    }
    return files.sha256_json(
        [
            sections,
            files.sha256_tree(assembled),
            files.sha256_tree(previous),
            files.sha256_tree(Path(detectron_ext.__file__).parent, keep=lambda path: path.suffix == ".py"),
            torch.__version__,
        ]
    )


def _body(workspace: Workspace) -> None:
    train(
        load(workspace.params, "seed", "classes", "model", "train", "views", "ssl"),
        root=workspace.root,
        assembled=workspace.derived("assemble"),
        previous=workspace.previous,
        scratch=workspace.scratch("train"),
        out=workspace.derived("train"),
    )


def main() -> None:
    """``python -m tasks.train``."""
    run_stage("train", _body)


if __name__ == "__main__":
    main()
