"""The training stage as two processes: one outcome, written once."""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from detectron_ext.meta_arch import cpu_state_dict
from tasks.data import schemas
from tasks.data.paths import image_id_from_sha256
from tasks.model.checkpoint import Checkpoint, write_state
from tasks.model.detector import new_detector
from tasks.params import load_stage_params
from tasks.params.template import render_params
from tasks.runtime.errors import GuardRailError, UserError
from tasks.storage import files
from tasks.train import _reproducibility, _set_determinism, train, train_worker
from tests.detectron_ext.ddp_launch import launch_two_processes

REPOSITORY = Path(__file__).parents[3]
SMALL = [
    "train.iterations=3",
    "train.burn_in_iterations=1",
    "train.num_workers=0",
    "model.short_side_px=64",
    "model.long_side_px=96",
    "model.fpn_channels=32",
]
SECTIONS = ("seed", "classes", "model", "train", "augmentation", "ssl", "scoring", "infer")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    template = (REPOSITORY / "params.yaml").read_text()
    params = render_params(template, classes=["square", "disc"], overrides=SMALL)
    (tmp_path / "params.yaml").write_text(params)
    images = [save_image(tmp_path, seed) for seed in range(5)]
    boxes = {"boxes_xyxy": [10.0, 10.0, 40.0, 50.0], "class_ids": [1], "batch": 0}
    files.write_table(
        tmp_path / "assembled" / "labeled.parquet",
        pa.Table.from_pylist([image | boxes for image in images[:2]], schemas.ANNOTATED),
    )
    files.write_table(
        tmp_path / "assembled" / "unlabeled.parquet", pa.Table.from_pylist(images[2:4], schemas.UNLABELED)
    )
    files.write_table(
        tmp_path / "previous" / "uncertainty.parquet", pa.Table.from_pylist([], schemas.PREVIOUS_UNCERTAINTY)
    )
    calibration = pa.Table.from_pylist([image | boxes for image in images[4:]], schemas.ANNOTATED)
    files.write_table(tmp_path / "assembled" / "calibration.parquet", calibration)
    files.write_json(tmp_path / "previous" / "class_weights.json", {})
    files.write_json(tmp_path / "previous" / "history.json", [])
    return tmp_path


def save_image(folder: Path, seed: int) -> dict[str, object]:
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    path = folder / f"{seed}.png"
    Image.fromarray(pixels).save(path)
    return {
        "image_id": image_id_from_sha256(files.sha256_file(path)),
        "uri": path.name,
        "width_px": 80,
        "height_px": 64,
    }


def run_worker(rank: int, folder: Path) -> None:
    sections = load_stage_params(folder / "params.yaml", *SECTIONS)
    places = [folder / name for name in ("assembled", "previous", "scratch", "out")]
    train_worker(sections, folder, *places)
    torch.save(torch.tensor(rank), folder / f"{rank}.pth")


@pytest.mark.integration
def test_two_processes_leave_one_outcome(workspace: Path) -> None:
    assert [int(rank) for rank in launch_two_processes(run_worker, workspace)] == [0, 1]
    summary = files.read_json(workspace / "out" / "summary.json")
    assert summary["iterations"] == 3
    assert (summary["processes"], summary["device"], summary["reproducibility"]) == (2, "cpu", "bitwise")
    assert "pretraining" not in summary  # and nothing else of an option that is off
    assert summary["teacher_sha256"] == files.sha256_file(workspace / "out" / "teacher.pth")
    assert not list((workspace / "scratch").glob("*.pth"))


@pytest.mark.integration
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_training_cannot_read_any_more_is_named(workspace: Path, num_workers: int) -> None:
    """The processes that read ahead have ended by then, though the error and its traceback are still held."""
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("num_workers: 0", f"num_workers: {num_workers}"))
    for name in ("0.png", "1.png"):
        (workspace / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"[01]\.png: the image is unreadable .+expected what prepare saw") as raised:
        run_worker(0, workspace)
    assert raised.tb is not None
    assert multiprocessing.active_children() == []


class Killed(Exception):
    pass


@pytest.mark.integration
def test_a_run_that_is_killed_around_the_end_of_burn_in_ends_as_if_it_had_not_been(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after each of the states that are saved: one burn-in iteration, the scores, two more iterations."""
    settings = [*SMALL, "ssl.use_weights=sampling", "train.checkpoint_every_iterations=1"]
    settings += ["train.unlabeled_batch_size=4", "ssl.pseudo_label_threshold=0.05", "ssl.paste_rare_frac=1.0"]
    settings += ["ssl.teacher_decays=[0.05]", "train.class_norm_tau=0.5", "ssl.noise_aware_loss=bootstrap"]
    settings += ["train.anchor_assigner=sim_ota", "train.roi_assigner=sim_ota"]
    settings += ["ssl.pseudo_label_check=weight", "ssl.paste_objects_per_view=2", "ssl.paste_pseudo_frac=0.5"]
    settings += ["ssl.relation_weight=0.5", "ssl.objectness_doubt=true"]
    settings += ["ssl.source_kl_weight=0.5"]
    settings += ["ssl.fusion_mirrored_view=true", "ssl.fusion_earlier_teachers=1", "ssl.fusion_every_iterations=1"]
    text = (REPOSITORY / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(render_params(text, classes=["square", "disc"], overrides=settings))
    sections = load_stage_params(workspace / "params.yaml", *SECTIONS)
    source = new_detector(sections.model, 2, sections.ssl.focal_gamma, workspace, "cpu")
    write_state(cpu_state_dict(source), workspace / "previous" / "teacher.pth")
    monkeypatch.setattr(Checkpoint, "exit_on_signal", lambda self: None)
    save = Checkpoint.save

    def run(out: str, kill_after: int) -> dict[str, str]:
        saves = 0

        def save_and_die(self: Checkpoint, *state: Any) -> None:
            nonlocal saves
            save(self, *state)
            saves += 1
            if saves == kill_after:
                raise Killed

        monkeypatch.setattr(Checkpoint, "save", save_and_die)
        train_worker(sections, workspace, *(workspace / name for name in ("assembled", "previous", "scratch", out)))
        assert saves == 4 if kill_after == 0 else saves < 4
        return {path.name: files.sha256_file(path) for path in (workspace / out).iterdir()}

    expected = run("whole", kill_after=0)
    assert files.read_json(workspace / "whole" / "summary.json")["burn_in_scored_images"] == 3
    for kill_after in (1, 2, 3):
        with pytest.raises(Killed):
            run("killed", kill_after)
        assert run("resumed", kill_after=-1) == expected


@pytest.mark.integration
def test_a_round_without_a_class_that_is_precise_enough_is_supervised(workspace: Path) -> None:
    """30 detections of each class at a score of 0.9, all wrong: the same training as with ssl.enabled: false."""
    template = (REPOSITORY / "params.yaml").read_text()
    wrong = [{"class_name": name, "score": 0.9, "is_right": False} for name in ("square", "disc") for _ in range(30)]
    places = [workspace / name for name in ("assembled", "previous", "scratch")]
    for out, enabled, rows in (("none", "true", wrong), ("off", "false", [])):
        params = render_params(template, classes=["square", "disc"], overrides=[*SMALL, f"ssl.enabled={enabled}"])
        (workspace / "params.yaml").write_text(params)
        sections = load_stage_params(workspace / "params.yaml", *SECTIONS)
        train_worker(sections, workspace, *places, workspace / out, pa.Table.from_pylist(rows, schemas.OUTCOMES))
    none, off = (files.read_json(workspace / out / "summary.json") for out in ("none", "off"))
    assert none["pseudo_labels"]["reason"] == "the measured precision of no class's pseudo-labels is high enough"
    assert none["pseudo_labels"]["classes"]["disc"]["num_terms"] == 30
    assert off["pseudo_labels"]["reason"] == "ssl.enabled is false"
    assert (none["iterations"], none["burn_in_scored_images"], none["loss_unsup"]) == (3, 0, 0.0)
    assert none["teacher_sha256"] == off["teacher_sha256"]


@pytest.mark.integration
def test_a_batch_that_does_not_divide_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.train.world_size", lambda: 3)
    sections = load_stage_params(workspace / "params.yaml", *SECTIONS)
    with pytest.raises(UserError, match=r"train\.labeled_batch_size is 4, expected a multiple of the 3 GPUs"):
        train(
            sections,
            root=workspace,
            assembled=workspace / "assembled",
            warm_start=workspace / "previous",
            scratch=workspace / "scratch",
            out=workspace / "out",
        )


@pytest.mark.integration
def test_a_divergence_is_a_guard_rail(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2's own FloatingPointError comes first in practice."""

    def diverged(*_args: object) -> None:
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")

    monkeypatch.setattr("detectron_ext.heads.PerImageRPN.forward", diverged)
    sections = load_stage_params(workspace / "params.yaml", *SECTIONS)
    with pytest.raises(GuardRailError, match="train: proposals are not finite at iteration 0") as caught:
        train_worker(sections, workspace, *(workspace / name for name in ("assembled", "previous", "scratch", "out")))
    assert caught.value.exit_code == 3
    assert not (workspace / "out").exists()


@pytest.mark.parametrize(
    ("device", "hardware_changed", "kind"),
    [("cpu", False, "bitwise"), ("cpu", True, "statistical"), ("cuda", False, "statistical")],
)
def test_kinds_of_reproducibility(device: str, hardware_changed: bool, kind: str) -> None:
    assert _reproducibility(device, hardware_changed) == kind


def test_only_a_cpu_gets_deterministic_kernels() -> None:
    """On CUDA torchvision's deterministic ROIAlign is many times slower."""
    try:
        for device in ("cuda", "cpu"):
            _set_determinism(device)
            assert torch.are_deterministic_algorithms_enabled() == (device == "cpu")
            assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("kind", [UserError, GuardRailError])
def test_an_error_survives_the_way_between_processes(kind: type[UserError]) -> None:
    error = pickle.loads(pickle.dumps(kind("train", "loss is nan, expected a number", "Lower it.")))
    assert type(error) is kind
    assert str(error) == "train: loss is nan, expected a number. Lower it."
    assert error.fix == "Lower it."
