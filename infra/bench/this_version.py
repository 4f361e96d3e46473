"""What ``infra.bench.speed`` times of this checkout, and of stock Detectron2 on the same network."""

import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from detectron2.engine import SimpleTrainer
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.utils.data import DataLoader

from detectron_ext.augmentation import AugmentationConfig
from detectron_ext.config import build_cfg
from detectron_ext.data import SemiSupervisedBatches, StepBatch
from detectron_ext.inference import prepare_image
from detectron_ext.pseudo_labels import pseudo_label
from detectron_ext.trainer import TeacherStudentTrainer, parameter_groups
from infra.bench.timed_functions import serve
from tasks import train
from tasks.data import schemas
from tasks.model.detector import (
    ImageReader,
    default_device,
    detect_all,
    detector_config,
    resize_config,
    to_examples,
)
from tasks.model.engines.detection_job import load_members
from tasks.params import StageParams, load_params
from tasks.runtime.allocator import keep_freed_memory
from tasks.training.pseudo_labels import assess_classes, score_threshold

NUM_STEPS = 4
"""Steps per measurement, each on a batch of its own."""


def main(folder: Path) -> None:
    """Serve; arguments: folder of ``write_images``, with ``warm_start``."""
    train._set_determinism(default_device())
    keep_freed_memory()
    serve(timed_functions(folder))


def timed_functions(folder: Path) -> dict[str, Callable[[], object]]:
    """Return the functions to time, by name; the stages' own settings hold."""
    params = bench_params()
    rows = json.loads((folder / "rows.json").read_text())
    threshold = score_threshold(assess_classes(schemas.OUTCOMES.empty_table(), params.classes, params.ssl), params.ssl)
    student = train._new_student(params, folder, folder / "warm_start")
    trainer = train._build_trainer(params, student, folder, folder / "warm_start", threshold)
    batches = load_batches(params, rows, folder)
    functions = training_functions(trainer, params, batches)
    return functions | inference_functions(trainer, params, rows["unlabeled"], folder)


def bench_params() -> StageParams:
    """Return the repository's parameters, past burn-in and almost without learning."""
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    schedule = {"iterations": 10**6, "burn_in_iterations": 0, "warmup_iterations": 0, "learning_rate": 1e-6}
    schedule |= {"labeled_batch_size": 4, "unlabeled_batch_size": 2}
    ssl = {"divergence_loss_ratio": 1e9, "pseudo_label_threshold": 0.3}
    changed = {"train": params.train.model_copy(update=schedule), "ssl": params.ssl.model_copy(update=ssl)}
    sections = ("seed", "classes", "model", "train", "augmentation", "ssl", "infer")
    return StageParams(params.model_copy(update=changed), sections)


def load_batches(params: StageParams, rows: dict[str, Any], folder: Path) -> list[StepBatch]:
    """Make the first batches as the stage does."""
    labeled, unlabeled = (to_examples(pa.Table.from_pylist(rows[kind])) for kind in ("labeled", "unlabeled"))
    batches = SemiSupervisedBatches(
        labeled,
        unlabeled,
        ImageReader(folder, rows["labeled"] + rows["unlabeled"]),
        AugmentationConfig(params.model.short_side_px, params.model.long_side_px, **params.augmentation.model_dump()),
        batch_sizes=(params.train.labeled_batch_size, params.train.unlabeled_batch_size),
        burn_in_iterations=0,
        seed=params.seed,
    )
    return [batches[iteration] for iteration in range(NUM_STEPS)]


def training_functions(
    trainer: TeacherStudentTrainer, params: StageParams, batches: list[StepBatch]
) -> dict[str, Callable[[], object]]:
    """Return the steps, the parts of a step, and Detectron2's own step on the labeled images of the same batches."""
    simple_trainer = build_simple_trainer(trainer, params, [batch.labeled for batch in batches])

    def run_parts() -> None:
        for batch in batches:
            with EventStorage():
                trainer.student(batch.labeled).total().mean().backward()
            targets = pseudo_label(trainer.teacher, batch.unlabeled_weak, trainer.threshold).targets
            inputs = [{**image, "instances": own} for image, own in zip(batch.unlabeled_strong, targets, strict=True)]
            with EventStorage():
                trainer.student(inputs).classification().mean().backward()
            trainer.student.zero_grad(set_to_none=True)

    def run_stock_steps() -> None:
        for _ in batches:
            with EventStorage():
                simple_trainer.run_step()

    return {
        "step": lambda: [trainer.step(batch) for batch in batches],
        "parts": run_parts,
        "supervised": lambda: [trainer.step(StepBatch(batch.labeled, [], [], [])) for batch in batches],
        "SimpleTrainer": run_stock_steps,
    }


def build_simple_trainer(
    trainer: TeacherStudentTrainer, params: StageParams, labeled: list[list[dict[str, Any]]]
) -> SimpleTrainer:
    """Build Detectron2's trainer and stock detector with the student's weights and the same optimizer."""
    model = build_stock_detector(params)
    model.load_state_dict(trainer.student.state_dict())
    if params.train.channels_last:
        model.to(memory_format=torch.channels_last)
    groups = parameter_groups(model, trainer.schedule.weight_decay, trainer.schedule.backbone_lr_factor)
    optimizer = torch.optim.AdamW(groups, lr=trainer.schedule.learning_rate, fused=True)
    return SimpleTrainer(model, itertools.cycle(labeled), optimizer)


def build_stock_detector(params: StageParams) -> torch.nn.Module:
    """Build the same network with Detectron2's architecture, RPN and heads in place of this package's."""
    cfg = build_cfg(detector_config(params.model, len(params.classes), params.ssl.focal_gamma), default_device())
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    model: torch.nn.Module = build_model(cfg)
    return model


def inference_functions(
    trainer: TeacherStudentTrainer, params: StageParams, rows: list[dict[str, Any]], folder: Path
) -> dict[str, Callable[[], object]]:
    """Return inference from image files as the stage does it, and Detectron2's with one process that reads."""
    read = ImageReader(folder, rows)
    stock = build_stock_detector(params)
    stock.load_state_dict(trainer.teacher.state_dict())
    detector = load_like_infer(trainer, params)
    batch_size = params.infer.batch_size

    def prepare(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        prepared = [prepare_image(read(row["uri"]), resize_config(params.model)) for row in batch]
        return [{**one.model_input, "height": one.height_px, "width": one.width_px} for one in prepared]

    def run() -> None:
        for _ in detect_all(
            [detector], rows, lambda row: read(row["uri"]), params.model, batch_size=batch_size, mixed_precision=False
        ):
            pass

    def run_stock() -> None:
        loader: Any = DataLoader(rows, batch_size, collate_fn=prepare, num_workers=1)  # type: ignore[arg-type]
        inference_on_dataset(stock, loader, None)

    return {"inference": run, "inference_on_dataset": run_stock}


def load_like_infer(trainer: TeacherStudentTrainer, params: StageParams) -> Any:
    """Return the teacher as the stage ``infer`` builds it."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "teacher.pth"
        torch.save(trainer.teacher.state_dict(), weights)
        return load_members(params, [weights])[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
