"""Train teacher and student on labeled images, and on unlabeled images with a weight for each.

Reads  data/images, data/labels, data/detections_at_selection, data/warm_start, derived/assemble
Writes derived/train
Params seed, classes, model, train, augmentation, ssl, scoring, infer.score_threshold
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectron_ext.augmentation import AugmentationConfig, Example
from detectron_ext.class_rebalancing import tau_normalize
from detectron_ext.data import SemiSupervisedBatches
from detectron_ext.distributed import is_main_process, rank, world_size
from detectron_ext.meta_arch import PerImageRCNN, cpu_state_dict
from detectron_ext.noise_aware_loss import NoiseAwareLoss
from detectron_ext.pseudo_labels import ScoreThreshold
from detectron_ext.trainer import ImageWeighting, Schedule, StepLog, TeacherStudentTrainer
from tasks.data import schemas
from tasks.data.images import translate_worker_errors
from tasks.data.paths import Workspace
from tasks.model.checkpoint import Checkpoint, write_state
from tasks.model.detector import (
    ImageReader,
    default_device,
    load_weights_file,
    new_detector,
    starts_from_detector,
    to_examples,
)
from tasks.model.engines.ray_train import train_on_ray
from tasks.model.fingerprint import software_fingerprint
from tasks.model.launch import launch
from tasks.params import StageParams, load_stage_params
from tasks.params.training import SslParams, TrainParams
from tasks.runtime.allocator import keep_freed_memory
from tasks.runtime.errors import UserError
from tasks.runtime.stage_main import num_micro_batches, stage_main
from tasks.storage import files
from tasks.training import image_weights
from tasks.training.foreground_bank import new_bank
from tasks.training.image_weights import (
    image_weighting,
    previous_metric_weights,
    previous_uncertainty,
    sampling_weights,
)
from tasks.training.pretraining import Pretraining, pretrain_backbone
from tasks.training.pseudo_label_checks import NUM_LOOKED_AT, check_summary, new_check
from tasks.training.pseudo_labels import assess_classes, known_outcomes, pseudo_label_summary, score_threshold
from tasks.training.run import TrainingRun, read_unlabeled
from tasks.training.source_anchor import new_anchor
from tasks.training.teacher_fusion import new_fusion

log = logging.getLogger(__name__)
_SECTIONS = ("seed", "classes", "model", "train", "augmentation", "ssl", "scoring", "infer")


def train(
    params: StageParams,
    *,
    root: Path,
    assembled: Path,
    warm_start: Path,
    scratch: Path,
    out: Path,
    outcomes: pa.Table | None = None,
) -> None:
    """Train one round's networks and write teacher.pth, student.pth, curves.parquet and summary.json.

    Args:
        params: sections seed, classes, model, train, augmentation, ssl, scoring, infer.
        root: folder that image uris are relative to.
        assembled: output of assemble.
        warm_start: what the round before handed over.
        scratch: checkpoints; a run with the same inputs goes on from the newest.
        out: output folder.
        outcomes: detections with a known outcome, schemas.OUTCOMES; None: there are none.

    Raises:
        UserError: no labels, or parameters that name no usable model.
        GuardRailError: training left its bounds; nothing is written.
    """
    arguments = (params, root, assembled, warm_start, scratch, out, outcomes)
    if params.train.engine == "ray":
        address, num_workers = params.infer.engine_address, params.train.engine_workers
        train_on_ray(address, num_workers, scratch, "tasks.train", "train_worker", arguments)
    else:
        launch("train", train_worker, *arguments)


def train_worker(
    params: StageParams,
    root: Path,
    assembled: Path,
    warm_start: Path,
    scratch: Path,
    out: Path,
    outcomes: pa.Table | None = None,
) -> None:
    """Run ``train`` as one of several processes, or as the only one; the first of them writes."""
    _set_determinism(default_device())
    keep_freed_memory()
    labeled = to_examples(files.read_table(assembled / "labeled.parquet", schemas.ANNOTATED))
    unlabeled = read_unlabeled(assembled)
    if not labeled:
        raise UserError(assembled / "labeled.parquet", "labeled images are 0, expected at least 1")
    _check_divisible_batch_sizes(params.train)
    read = ImageReader(root, [{"uri": one.uri, "image_id": one.image_id} for one in (*labeled, *unlabeled)])
    augmentation = AugmentationConfig(
        params.model.short_side_px,
        params.model.long_side_px,
        tile_side_px=params.model.tile_side_px,
        **params.augmentation.model_dump(),
    )
    known = schemas.OUTCOMES.empty_table() if outcomes is None else outcomes
    assessed = assess_classes(known, params.classes, params.ssl)
    pseudo_labels = pseudo_label_summary(
        assessed, params.ssl, len(unlabeled) if params.train.unlabeled_batch_size else 0
    )
    student = _new_student(params, root, warm_start)
    pretraining = _pretrain(student, [*labeled, *unlabeled], read, augmentation, params, root, warm_start, scratch)
    trainer = _build_trainer(params, student, root, warm_start, score_threshold(assessed, params.ssl))
    if pseudo_labels["takes_part"]:
        trainer.check = new_check(params.ssl, trainer.student, len(params.classes), params.seed)
        trainer.relation_weight = params.ssl.relation_weight
        trainer.spares_doubtful_background = params.ssl.objectness_doubt
        trainer.bank = new_bank(params.ssl, len(params.classes), params.seed)
        trainer.fusion = new_fusion(params.ssl)
        trainer.anchor = new_anchor(
            params.ssl, trainer.teacher, has_source=_starts_from_teacher(params.train, warm_start)
        )

    def new_batches(weights: NDArray[np.float64] | None) -> SemiSupervisedBatches:
        return SemiSupervisedBatches(
            labeled,
            unlabeled if pseudo_labels["takes_part"] else [],
            read,
            augmentation,
            batch_sizes=(params.train.labeled_batch_size, params.train.unlabeled_batch_size),
            burn_in_iterations=params.train.burn_in_iterations,
            seed=params.seed,
            rank=rank(),
            world_size=world_size(),
            sampling_weights=weights,
            paste_rare_frac=params.ssl.paste_rare_frac,
            paste_objects_per_view=params.ssl.paste_objects_per_view,
        )

    checkpoint = Checkpoint(scratch, _input_key(params, assembled, warm_start, pseudo_labels), _hardware(student))
    run = TrainingRun(trainer, params.train, checkpoint, checkpoint.load(trainer))
    checkpoint.exit_on_signal()
    if pretraining is not None:  # asked to leave since its last step, or on other hardware than this
        checkpoint.exit_requested |= pretraining.exit_requested
        checkpoint.hardware_changed |= pretraining.hardware_changed
    with translate_worker_errors("train"):
        uncertainty_of: dict[str, float] = {}
        if pseudo_labels["takes_part"]:
            uncertainty_of = _unlabeled_uncertainty(run, new_batches, read, params, warm_start)
        weighting, weights = image_weighting(uncertainty_of, params.ssl), None
        if params.ssl.use_weights == "sampling":
            weights = sampling_weights(weighting, [one.image_id for one in unlabeled])
            weighting = ImageWeighting({}, "uniform")
        trainer.weighting = weighting
        batches = new_batches(weights)
        run.train_until(params.train.iterations, batches)
    if is_main_process():
        reproducibility = _reproducibility(trainer.student.device.type, checkpoint.hardware_changed)
        description = {
            "reproducibility": reproducibility,
            "labeled_images": len(labeled),
            "unlabeled_images": len(unlabeled),
            "pseudo_labels": pseudo_labels,
        }
        looked_at = batches.random_unlabeled(NUM_LOOKED_AT)
        checked = check_summary(trainer, looked_at, read, params.model, params.classes)
        if checked is not None:
            description["pseudo_label_check"] = checked
        if pretraining is not None:
            description["pretraining"] = pretraining.summary()
            pretraining.write_curves(out)
        _write_outputs(trainer, run.logs, params, description, out)
        checkpoint.delete()


def _set_determinism(device: str) -> None:
    """Choose kernels that give the same bits each time, on a CPU.

    Not on CUDA: there torchvision's deterministic ROIAlign is many times slower and can exceed the memory, and bits
    would differ between GPUs all the same.
    """
    torch.use_deterministic_algorithms(device == "cpu", warn_only=True)
    # A debugging aid, at the price of a write per tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _hardware(student: PerImageRCNN) -> dict[str, Any]:
    device = student.device.type
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processes": world_size(),
        "micro_batches": num_micro_batches(),
    }


def _reproducibility(device_type: str, hardware_changed: bool) -> str:
    """Say what a repetition with the same inputs, code and hardware gives.

    ``bitwise``: the same files. ``statistical``: other rounding errors, which training amplifies; so results agree
    only in the mean over repetitions.
    """
    return "bitwise" if device_type == "cpu" and not hardware_changed else "statistical"


def _check_divisible_batch_sizes(params: TrainParams) -> None:
    devices = world_size()
    names = ["labeled_batch_size", "unlabeled_batch_size"]
    if params.pretrain_iterations:
        names.append("pretrain_batch_size")
    for name in names:
        if getattr(params, name) % devices:
            problem = f"train.{name} is {getattr(params, name)}, expected a multiple of the {devices} GPUs"
            raise UserError("params.yaml", problem, "Or use fewer: CUDA_VISIBLE_DEVICES, torchrun --nproc-per-node.")


def _starts_from_teacher(params: TrainParams, warm_start: Path) -> bool:
    return params.init_from == "previous_round" and (warm_start / "teacher.pth").is_file()


def _new_student(params: StageParams, root: Path, warm_start: Path) -> PerImageRCNN:
    """Build the student as it starts: from the backbone's weights, or from the teacher of the round before."""
    torch.manual_seed(params.seed)
    student = new_detector(params.model, len(params.classes), params.ssl.focal_gamma, root, default_device())
    if _starts_from_teacher(params.train, warm_start):
        load_weights_file(student, warm_start / "teacher.pth")
    return student


def _pretrain(
    student: PerImageRCNN,
    images: Sequence[Example],
    read: ImageReader,
    augmentation: AugmentationConfig,
    params: StageParams,
    root: Path,
    warm_start: Path,
    scratch: Path,
) -> Pretraining | None:
    """Train the student's backbone on all images without their labels, where that is wanted; None where it is not."""
    if not params.train.pretrain_iterations:
        return None
    if _starts_from_teacher(params.train, warm_start):
        return Pretraining([])
    if starts_from_detector(params.model, root):
        raise UserError(
            "params.yaml",
            f"train.pretrain_iterations is {params.train.pretrain_iterations}, expected 0 where"
            " model.pretrained_weights are of a whole detector: its pyramid and heads read the features that its"
            " backbone gave them",
            "Or start from weights of a backbone alone.",
        )
    if params.train.channels_last:
        student.to(memory_format=torch.channels_last)
    with translate_worker_errors("train"):
        return pretrain_backbone(student, images, read, augmentation, params, scratch, _hardware(student))


def _build_trainer(
    params: StageParams, student: PerImageRCNN, root: Path, warm_start: Path, threshold: ScoreThreshold
) -> TeacherStudentTrainer:
    ssl = params.ssl
    teacher = new_detector(params.model, len(params.classes), ssl.focal_gamma, root, default_device())
    teacher.load_state_dict(student.state_dict())
    student.set_class_weights(*_class_weights(warm_start / "class_weights.json", params.classes))
    student.set_anchor_assigner(params.train.anchor_assigner)
    student.set_roi_assigner(params.train.roi_assigner)
    student.set_noise_aware_loss(_noise_aware_loss(ssl))
    if params.train.channels_last:
        student.to(memory_format=torch.channels_last)
        teacher.to(memory_format=torch.channels_last)
    return TeacherStudentTrainer(
        student,
        teacher,
        _schedule(params.train, ssl),
        ImageWeighting({}, ssl.image_weighting),  # replaced before the first unlabeled image
        threshold,
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


def _noise_aware_loss(ssl: SslParams) -> NoiseAwareLoss | None:
    if ssl.noise_aware_loss == "none":
        return None
    return NoiseAwareLoss(ssl.noise_aware_loss, ssl.generalized_q, ssl.noise_aware_labels)


def _schedule(train_params: TrainParams, ssl: SslParams) -> Schedule:
    return Schedule(
        iterations=train_params.iterations,
        burn_in=train_params.burn_in_iterations,
        warmup=train_params.warmup_iterations,
        rampup=ssl.rampup_iterations,
        learning_rate=train_params.learning_rate,
        min_lr_ratio=train_params.min_lr_ratio,
        backbone_lr_factor=train_params.backbone_lr_factor,
        weight_decay=train_params.weight_decay,
        grad_clip_norm=train_params.grad_clip_norm,
        lambda_unsup=ssl.lambda_unsup,
        ema_decay=ssl.ema_decay,
        divergence_loss_ratio=ssl.divergence_loss_ratio,
        further_decays=tuple(ssl.teacher_decays),
    )


def _unlabeled_uncertainty(
    run: TrainingRun,
    new_batches: Callable[[None], SemiSupervisedBatches],
    read: ImageReader,
    params: StageParams,
    warm_start: Path,
) -> dict[str, float]:
    """Return U_j by image id: of the round before, or by the teacher at the end of burn-in, after training up to it."""
    if params.ssl.weights_from == "previous_round":
        return previous_uncertainty(warm_start)
    batches = new_batches(None)
    run.train_until(params.train.burn_in_iterations, batches)
    images = batches.random_unlabeled(_num_scored(params))
    return run.score_once(images, read, params, previous_metric_weights(warm_start))


def _num_scored(params: StageParams) -> int:
    """Unlabeled images that the teacher scores at the end of burn-in: at most the bound, and none that is not used."""
    num_draws = (params.train.iterations - params.train.burn_in_iterations) * params.train.unlabeled_batch_size
    bound: int = params.ssl.max_scored_images
    return bound if params.ssl.use_weights == "sampling" and num_draws else min(bound, num_draws)


def _write_outputs(
    trainer: TeacherStudentTrainer,
    logs: list[StepLog],
    params: StageParams,
    description: dict[str, Any],
    out: Path,
) -> None:
    digests = {}
    for name, network in (("teacher", trainer.teacher), ("student", trainer.student)):
        state = tau_normalize(cpu_state_dict(network), params.train.class_norm_tau)
        write_state(state, out / f"{name}.pth")
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
        **_hardware(trainer.student),
        **description,
        "loss_sup": mean("loss_sup", tail),
        "loss_unsup": mean("loss_unsup", with_pseudo),
        "pseudo_boxes_per_image": mean("pseudo_boxes_per_image", with_pseudo),
        "pseudo_boxes_per_image_by_class": _by_class(with_pseudo, params.classes),
        "mean_image_weight": mean("mean_image_weight", with_pseudo),
        "loss_ratio": round(trainer.loss_ratio, 6),
        "burn_in_scored_images": len(trainer.burn_in_uncertainty or {}),
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


def _input_key(params: StageParams, assembled: Path, warm_start: Path, pseudo_labels: dict[str, Any]) -> str:
    """Digest of everything that decides the result, so that a checkpoint of other inputs is never used."""
    sections: dict[str, Any] = {
        name: getattr(params, name).model_dump() for name in ("model", "train", "augmentation", "ssl", "scoring")
    }
    sections |= {"seed": params.seed, "classes": params.classes, "score_threshold": params.infer.score_threshold}
    return files.sha256_json(
        [
            sections,
            pseudo_labels,
            files.sha256_tree(assembled),
            files.sha256_tree(warm_start),
            software_fingerprint(Path(__file__), *sorted(Path(image_weights.__file__).parent.glob("*.py"))),
        ]
    )


def _body(workspace: Workspace) -> None:
    params = load_stage_params(workspace.params, *_SECTIONS)
    train(
        params,
        root=workspace.root,
        assembled=workspace.derived("assemble"),
        warm_start=workspace.warm_start,
        scratch=workspace.scratch("train"),
        out=workspace.derived("train"),
        outcomes=known_outcomes(
            workspace.warm_start, workspace.labels, workspace.detections_at_selection, params.ssl.precision_batches
        ),
    )


def main() -> None:
    """``python -m tasks train``."""
    stage_main("train", _body)


if __name__ == "__main__":
    main()
