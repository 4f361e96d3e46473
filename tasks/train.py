"""Train teacher and student on labeled images, and on unlabeled images with a weight for each.

Reads  data/images, data/warm_start, derived/assemble
Writes derived/train
Params seed, classes, model, train, augmentation, ssl
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from detectron_ext.augmentation import AugmentationConfig
from detectron_ext.data import SemiSupervisedBatches
from detectron_ext.distributed import any_rank, barrier, is_main_process, rank, world_size
from detectron_ext.meta_arch import cpu_state_dict
from detectron_ext.pseudo_labels import ScoreThreshold
from detectron_ext.trainer import ImageWeighting, Schedule, StepLog, TeacherStudentTrainer, TrainingDiverged
from tasks.data import schemas
from tasks.data.image_source import translate_worker_errors
from tasks.data.paths import Workspace
from tasks.model.checkpoint import Checkpoint, write_state
from tasks.model.detector import ImageReader, default_device, load_weights_file, new_detector, to_examples
from tasks.model.fingerprint import software_fingerprint
from tasks.model.launch import launch
from tasks.params import StageParams, load_stage_params
from tasks.params.stages import SslParams, TrainParams
from tasks.runtime.allocator import keep_freed_memory
from tasks.runtime.errors import GuardRailError, UserError
from tasks.runtime.stage_main import num_micro_batches, stage_main
from tasks.storage import files

log = logging.getLogger(__name__)
_PROGRESS_LINES = 12


def train(params: StageParams, *, root: Path, assembled: Path, warm_start: Path, scratch: Path, out: Path) -> None:
    """Train one round's networks and write teacher.pth, student.pth, curves.parquet and summary.json.

    Args:
        params: sections seed, classes, model, train, views, ssl.
        root: folder that image uris are relative to.
        assembled: output of assemble.
        warm_start: what the round before handed over.
        scratch: checkpoints; a run with the same inputs goes on from the newest.
        out: output folder.

    Raises:
        UserError: no labels, or parameters that name no usable model.
        GuardRailError: training left its bounds; nothing is written.
    """
    launch("train", train_worker, params, root, assembled, warm_start, scratch, out)


def train_worker(params: StageParams, root: Path, assembled: Path, warm_start: Path, scratch: Path, out: Path) -> None:
    """Run ``train`` as one of several processes, or as the only one; the first of them writes."""
    _set_determinism(default_device())
    keep_freed_memory()
    labeled = to_examples(files.read_table(assembled / "labeled.parquet", schemas.ANNOTATED))
    unlabeled = to_examples(files.read_table(assembled / "unlabeled.parquet", schemas.UNLABELED))
    if not labeled:
        raise UserError(assembled / "labeled.parquet", "labeled images are 0, expected at least 1")
    _check_divisible_batch_sizes(params.train)
    trainer = _build_trainer(params, root, warm_start)
    batches = SemiSupervisedBatches(
        labeled,
        unlabeled if params.ssl.enabled else [],
        ImageReader(root, [{"uri": one.uri, "image_id": one.image_id} for one in (*labeled, *unlabeled)]),
        AugmentationConfig(params.model.short_side_px, params.model.long_side_px, **params.augmentation.model_dump()),
        batch_sizes=(params.train.labeled_batch_size, params.train.unlabeled_batch_size),
        burn_in_iterations=params.train.burn_in_iterations,
        seed=params.seed,
        rank=rank(),
        world_size=world_size(),
    )
    checkpoint = Checkpoint(scratch, _input_key(params, assembled, warm_start), _hardware(trainer))
    logs = checkpoint.load(trainer)
    with translate_worker_errors("train"):
        logs += _train_loop(trainer, batches, params.train, checkpoint, logs)
    if is_main_process():
        reproducibility = _reproducibility(trainer.student.device.type, checkpoint.hardware_changed)
        _write_outputs(trainer, logs, params, reproducibility, (len(labeled), len(unlabeled)), out)
        checkpoint.delete()


def _set_determinism(device: str) -> None:
    """Choose kernels that give the same bits each time, on a CPU.

    Not on CUDA: there torchvision's deterministic ROIAlign is many times slower and can exceed the memory, and bits
    would differ between GPUs all the same.
    """
    torch.use_deterministic_algorithms(device == "cpu", warn_only=True)
    # A debugging aid, at the price of a write per tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _hardware(trainer: TeacherStudentTrainer) -> dict[str, Any]:
    device = trainer.student.device.type
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processes": world_size(),
        "micro_batches": trainer.num_micro_batches,
    }


def _reproducibility(device_type: str, hardware_changed: bool) -> str:
    """Say what a repetition with the same inputs, code and hardware gives.

    ``bitwise``: the same files. ``statistical``: other rounding errors, which training amplifies; so results agree
    only in the mean over repetitions.
    """
    return "bitwise" if device_type == "cpu" and not hardware_changed else "statistical"


def _check_divisible_batch_sizes(params: TrainParams) -> None:
    devices = world_size()
    for name in ("labeled_batch_size", "unlabeled_batch_size"):
        if getattr(params, name) % devices:
            problem = f"train.{name} is {getattr(params, name)}, expected a multiple of the {devices} GPUs"
            raise UserError("params.yaml", problem, "Or choose fewer GPUs by CUDA_VISIBLE_DEVICES.")


def _build_trainer(params: StageParams, root: Path, warm_start: Path) -> TeacherStudentTrainer:
    device, ssl = default_device(), params.ssl
    torch.manual_seed(params.seed)
    student, teacher = (
        new_detector(params.model, len(params.classes), ssl.focal_gamma, root, device) for _ in range(2)
    )
    if params.train.init_from == "previous_round" and (warm_start / "teacher.pth").is_file():
        load_weights_file(student, warm_start / "teacher.pth")
    teacher.load_state_dict(student.state_dict())
    student.set_class_weights(*_class_weights(warm_start / "class_weights.json", params.classes))
    if params.train.channels_last:
        student.to(memory_format=torch.channels_last)
        teacher.to(memory_format=torch.channels_last)
    return TeacherStudentTrainer(
        student,
        teacher,
        _schedule(params.train, ssl),
        _image_weighting(warm_start / "uncertainty.parquet", ssl),
        ScoreThreshold(
            ssl.pseudo_label_threshold_mode,
            ssl.pseudo_label_threshold,
            len(params.classes),
            ignore_score_threshold=ssl.ignore_score_threshold,
        ),
        ssl.pseudo_label_box_loss,
        params.train.mixed_precision,
        params.seed,
        num_micro_batches=num_micro_batches(),
    )


def _class_weights(path: Path, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Read v and b of the round before, (K,) each (docs/method.md#roi-weight); 1 for a class without one."""
    stored = files.read_json(path) if path.is_file() else {}
    positive_K, claimed_background_K = (
        torch.tensor([stored.get(kind, {}).get(name, 1.0) for name in classes])
        for kind in ("positive", "claimed_background")
    )
    return positive_K, claimed_background_K


def _schedule(train_params: TrainParams, ssl: SslParams) -> Schedule:
    return Schedule(
        iterations=train_params.iterations,
        burn_in=train_params.burn_in_iterations,
        warmup=train_params.warmup_iterations,
        rampup=ssl.rampup_iterations,
        learning_rate=train_params.learning_rate,
        min_lr_ratio=train_params.min_lr_ratio,
        weight_decay=train_params.weight_decay,
        grad_clip_norm=train_params.grad_clip_norm,
        lambda_unsup=ssl.lambda_unsup,
        ema_decay=ssl.ema_decay,
        divergence_loss_ratio=ssl.divergence_loss_ratio,
    )


def _image_weighting(uncertainty: Path, ssl: SslParams) -> ImageWeighting:
    """Read z_j of the round before; the first round has none, so every image weighs sigmoid(0) = 0.5."""
    table = files.read_table(uncertainty, schemas.PREVIOUS_UNCERTAINTY)
    z = table["uncertainty"].to_numpy().astype(np.float64)
    if ssl.standardize_image_weights and len(z):
        z = (z - z.mean()) / max(float(z.std()), 1e-6)
    return ImageWeighting(dict(zip(table["image_id"].to_pylist(), z.tolist(), strict=True)), ssl.image_weighting)


def _train_loop(
    trainer: TeacherStudentTrainer,
    batches: SemiSupervisedBatches,
    params: TrainParams,
    checkpoint: Checkpoint,
    previous_logs: list[StepLog],
) -> list[StepLog]:
    logs: list[StepLog] = []
    checkpoint.exit_on_signal()
    log_every = max(params.iterations // _PROGRESS_LINES, 1)
    for batch in batches.iterate(trainer.iteration, params.iterations, params.num_workers):
        try:
            entry = trainer.step(batch)
        except TrainingDiverged as error:
            raise GuardRailError("train", str(error), "Lower ssl.lambda_unsup or train.learning_rate.") from None
        logs.append(entry)
        if entry.iteration % log_every == 0:
            log.info(
                "train %d/%d  supervised %.3f  unsupervised %.3f  pseudo-boxes %.1f an image",
                entry.iteration,
                params.iterations,
                entry.loss_sup,
                entry.loss_unsup,
                entry.pseudo_boxes_per_image,
            )
        should_exit = any_rank(checkpoint.exit_requested)
        if is_main_process() and (should_exit or entry.iteration % params.checkpoint_every_iterations == 0):
            checkpoint.save(trainer, previous_logs + logs)
        if should_exit:
            barrier()  # the first to go takes the others with it
            checkpoint.exit_interrupted(entry.iteration)
    return logs


def _write_outputs(
    trainer: TeacherStudentTrainer,
    logs: list[StepLog],
    params: StageParams,
    reproducibility: str,
    num_images: tuple[int, int],
    out: Path,
) -> None:
    digests = {}
    for name, network in (("teacher", trainer.teacher), ("student", trainer.student)):
        write_state(cpu_state_dict(network), out / f"{name}.pth")
        digests[f"{name}_sha256"] = files.sha256_file(out / f"{name}.pth")
    curves = [_curve_row(entry) for entry in logs]
    files.write_table(out / "curves.parquet", pa.Table.from_pylist(curves))
    tail = logs[-max(len(logs) // 5, 1) :]
    with_pseudo = [entry for entry in tail if entry.lambda_unsup > 0]

    def mean(name: str, entries: list[StepLog]) -> float:
        return round(float(np.mean([getattr(entry, name) for entry in entries])), 6) if entries else 0.0

    summary: dict[str, Any] = {
        "iterations": trainer.iteration,
        "init_from": params.train.init_from,
        **_hardware(trainer),
        "reproducibility": reproducibility,
        "labeled_images": num_images[0],
        "unlabeled_images": num_images[1],
        "loss_sup": mean("loss_sup", tail),
        "loss_unsup": mean("loss_unsup", with_pseudo),
        "pseudo_boxes_per_image": mean("pseudo_boxes_per_image", with_pseudo),
        "pseudo_boxes_per_image_by_class": _by_class(with_pseudo, params.classes),
        "mean_image_weight": mean("mean_image_weight", with_pseudo),
        "loss_ratio": round(trainer.loss_ratio, 6),
        **digests,
    }
    files.write_json(out / "summary.json", summary)


def _curve_row(entry: StepLog) -> dict[str, float]:
    row = asdict(entry) | {"pseudo_boxes_per_image": entry.pseudo_boxes_per_image}
    del row["pseudo_boxes_K"]
    return row


def _by_class(entries: list[StepLog], classes: list[str]) -> dict[str, float]:
    mean_K = np.mean([entry.pseudo_boxes_K for entry in entries], axis=0) if entries else np.zeros(len(classes))
    return {name: round(float(mean), 6) for name, mean in zip(classes, mean_K, strict=True)}


def _input_key(params: StageParams, assembled: Path, warm_start: Path) -> str:
    """Digest of everything that decides the result, so that a checkpoint of other inputs is never used."""
    sections = {name: getattr(params, name).model_dump() for name in ("model", "train", "augmentation", "ssl")} | {
        "seed": params.seed,
        "classes": params.classes,
    }
    return files.sha256_json(
        [
            sections,
            files.sha256_tree(assembled),
            files.sha256_tree(warm_start),
            software_fingerprint(Path(__file__)),
        ]
    )


def _body(workspace: Workspace) -> None:
    train(
        load_stage_params(workspace.params, "seed", "classes", "model", "train", "augmentation", "ssl"),
        root=workspace.root,
        assembled=workspace.derived("assemble"),
        warm_start=workspace.warm_start,
        scratch=workspace.scratch("train"),
        out=workspace.derived("train"),
    )


def main() -> None:
    """``python -m tasks.train``."""
    stage_main("train", _body)


if __name__ == "__main__":
    main()
