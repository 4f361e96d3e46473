"""A pruned export: what it is trained on, what the folder says, when it is refused, and that a killed call goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detectron_ext.data import StepBatch
from detectron_ext.trainer import StepLog, TeacherStudentTrainer
from tasks.data.image_decoding import open_rgb
from tasks.data.schemas import UNLABELED
from tasks.export import package
from tasks.export.measure import Accuracy
from tasks.export.package import ExportRefusedError, write_export
from tasks.export.prune import PrunedDetector, PruneImages, prune_detector, require_prune_frac
from tasks.export.runtime import METADATA_FILE, ExportedDetector
from tasks.model.detector import detect
from tasks.params import StageParams
from tasks.runtime.errors import UserError
from tests.tasks.export.exports import Exported

pytestmark = pytest.mark.integration
Pruner = Callable[..., PrunedDetector]


@pytest.fixture
def images(exported: Exported) -> PruneImages:
    """Two labeled images; three of which nobody knows anything."""
    return PruneImages(exported.images.root, exported.images.calibration, exported.images.val.select(UNLABELED.names))


@pytest.fixture
def pruner(exported: Exported, images: PruneImages, tmp_path: Path) -> Pruner:
    """Prunes by half and trains for a number of iterations, with changes of the sections ``ssl``."""

    def run(iterations: int, images: PruneImages = images, **ssl: Any) -> PrunedDetector:
        return prune_detector(
            exported.model, _params(exported, iterations, **ssl), images, 0.5,
            model_sha256="ab" * 32, scratch=tmp_path / "scratch",
        )  # fmt: skip

    return run


def _params(exported: Exported, iterations: int, **ssl: Any) -> StageParams:
    whole = exported.params._params
    changes = {
        "train": {"labeled_batch_size": 2, "checkpoint_every_iterations": 1},
        "export": {"prune_finetune_iterations": iterations, "prune_importance_images": 3},
        "ssl": {"pseudo_label_threshold": 0.05, **ssl},
    }
    sections = {name: getattr(whole, name).model_copy(update=change) for name, change in changes.items()}
    return StageParams(whole.model_copy(update=sections), exported.params._names)


def _same(one: PrunedDetector, other: PrunedDetector) -> bool:
    states = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_pruned_export_is_smaller_and_says_what_was_removed_and_trained(
    exported: Exported, pruner: Pruner, tmp_path: Path
) -> None:
    pruned = pruner(2)
    request = replace(exported.request("onnx", "fp32"), pruned=pruned)
    measured = write_export(request, exported.images, tmp_path / "export")
    assert measured.size_mb < 0.7 * measured.size_original_mb
    metadata = json.loads((tmp_path / "export" / METADATA_FILE).read_text())
    assert metadata["pruning"] == pruned.record
    facts = {
        "fraction": 0.5,
        "finetune_iterations": 2,
        "finetune_labeled_images": 2,
        "finetune_pseudo_labeled_images": 3,
    }
    assert facts.items() <= pruned.record.items()
    assert pruned.record["channels_after"] < pruned.record["channels_before"]
    assert "Molchanov" in pruned.record["criterion"]
    detector = ExportedDetector(tmp_path / "export", 1)
    for path in exported.val_paths:
        found = detector.detect(path, 0.0)
        pixels = np.asarray(open_rgb(path))
        [expected] = detect(pruned.model, [pixels], exported.params.model, mixed_precision=False)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)


def test_without_pruning_the_metadata_say_nothing_of_it(exported: Exported) -> None:
    assert "pruning" not in json.loads((exported.folder("onnx") / METADATA_FILE).read_text())


def test_the_same_inputs_give_the_same_network_and_training_changes_it(pruner: Pruner) -> None:
    trained, repeated, removed = pruner(2), pruner(2), pruner(0)
    assert _same(trained, repeated)
    assert not _same(trained, removed)
    assert removed.record["finetune_labeled_images"] == removed.record["finetune_pseudo_labeled_images"] == 0


def test_a_call_that_was_killed_goes_on_and_ends_alike(pruner: Pruner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, steps = pruner(3), []
    step = TeacherStudentTrainer.step

    def killed_at_third(trainer: TeacherStudentTrainer, batch: StepBatch) -> StepLog:
        steps.append(trainer.iteration)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(trainer, batch)

    monkeypatch.setattr(TeacherStudentTrainer, "step", killed_at_third)
    with pytest.raises(KeyboardInterrupt):
        pruner(3)
    assert _same(pruner(3), expected)
    assert steps == [0, 1, 2, 2]


def test_an_image_without_a_sure_detection_is_left_out(pruner: Pruner) -> None:
    assert pruner(1, pseudo_label_threshold=1.0).record["finetune_pseudo_labeled_images"] == 0


def test_pruning_without_labels_is_refused(pruner: Pruner, images: PruneImages) -> None:
    with pytest.raises(UserError, match="labeled images are 0"):
        pruner(1, replace(images, labeled=images.labeled.slice(0, 0)))


@pytest.mark.parametrize("fraction", [-0.1, 0.9, 1.0, float("nan"), float("inf")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=r"expected a fraction of at least 0 and below 0\.9"):
        require_prune_frac(fraction)


def test_a_pruned_network_that_lost_too_much_is_refused(
    exported: Exported, pruner: Pruner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "measure_accuracy", lambda *args: Accuracy(40.0, 38.9, 0.9, 0.9, 3))
    request = replace(exported.request("onnx", "fp32", tolerance_points=1.0), pruned=pruner(0))
    with pytest.raises(ExportRefusedError, match=r"export\.prune_finetune_iterations"):
        write_export(request, exported.images, tmp_path / "export")
    assert not (tmp_path / "export").exists()
