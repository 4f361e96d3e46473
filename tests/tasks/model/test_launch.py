"""The training stage as two processes: one outcome, written once."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tasks.data import schemas
from tasks.data.paths import image_id_from_sha256
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


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    template = (REPOSITORY / "params.yaml").read_text()
    params = render_params(template, classes=["square", "disc"], overrides=SMALL)
    (tmp_path / "params.yaml").write_text(params)
    images = [save_image(tmp_path, seed) for seed in range(4)]
    boxes = {"boxes_xyxy": [10.0, 10.0, 40.0, 50.0], "class_ids": [1], "batch": 0}
    files.write_table(
        tmp_path / "assembled" / "labeled.parquet",
        pa.Table.from_pylist([image | boxes for image in images[:2]], schemas.ANNOTATED),
    )
    files.write_table(tmp_path / "assembled" / "unlabeled.parquet", pa.Table.from_pylist(images[2:], schemas.UNLABELED))
    files.write_table(
        tmp_path / "previous" / "uncertainty.parquet", pa.Table.from_pylist([], schemas.PREVIOUS_UNCERTAINTY)
    )
    files.write_json(tmp_path / "previous" / "class_weights.json", {})
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
    sections = load_stage_params(folder / "params.yaml", "seed", "classes", "model", "train", "augmentation", "ssl")
    places = [folder / name for name in ("assembled", "previous", "scratch", "out")]
    train_worker(sections, folder, *places)
    torch.save(torch.tensor(rank), folder / f"{rank}.pth")


@pytest.mark.integration
def test_two_processes_leave_one_outcome(workspace: Path) -> None:
    assert [int(rank) for rank in launch_two_processes(run_worker, workspace)] == [0, 1]
    summary = files.read_json(workspace / "out" / "summary.json")
    assert summary["iterations"] == 3
    assert (summary["processes"], summary["device"], summary["reproducibility"]) == (2, "cpu", "bitwise")
    assert summary["teacher_sha256"] == files.sha256_file(workspace / "out" / "teacher.pth")
    assert not list((workspace / "scratch").glob("*.pth"))


@pytest.mark.integration
def test_a_batch_that_does_not_divide_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.train.world_size", lambda: 3)
    sections = load_stage_params(workspace / "params.yaml", "seed", "classes", "model", "train", "augmentation", "ssl")
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

    monkeypatch.setattr("detectron_ext.rpn.PerImageRPN.forward", diverged)
    sections = load_stage_params(workspace / "params.yaml", "seed", "classes", "model", "train", "augmentation", "ssl")
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
