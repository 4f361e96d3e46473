"""A tiny campaign for tests of flows: 16 drawn images, made by the real ``gleaner init``, heavy stages replaced."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from flows.runtime.process_env import tracking_uri
from flows.workspace import git
from flows.workspace.scaffold import WorkspaceConfig, create_workspace
from tasks.data.dataset_source import DatasetSource
from tasks.data.paths import Workspace
from tasks.storage import files
from tests.flows.fake_stages import STAGES as FAKED
from tests.flows.preloaded_cli import run_preloaded

if TYPE_CHECKING:
    from mlflow import MlflowClient

REPOSITORY = Path(__file__).parents[2]
FAKE_STAGES = Path(__file__).with_name("fake_stages.py")
CLASSES = ("bright", "dark")
POOL, VAL, SEED, CALIBRATION = 13, 3, 3, 2
BUDGET = 3


def make_source(folder: Path, num_images: int = POOL + VAL) -> DatasetSource:
    """COCO: images of 40 x 32 px; one square each, but for the last, which is empty."""
    random = np.random.default_rng(4)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for number in range(num_images):
        pixels = random.integers(100, 140, size=(32, 40, 3)).astype(np.uint8)
        if number < num_images - 1:
            category = number % len(CLASSES)
            pixels[8:24, 10:26] = (250, 5)[category]
            annotations.append({"id": number, "image_id": number, "category_id": category, "bbox": [10, 8, 16, 16]})
        Image.fromarray(pixels).save(folder / "images" / f"{number:02d}.png")
        is_empty = number == num_images - 1
        entry = {"id": number, "file_name": f"{number:02d}.png", "width": 40, "height": 32}
        images.append({**entry, "reviewed": True} if is_empty else entry)
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    files.write_json(
        folder / "annotations.json", {"images": images, "annotations": annotations, "categories": categories}
    )
    return DatasetSource("coco", folder / "annotations.json", folder / "images", classes=CLASSES)


def workspace_config(source: DatasetSource, *settings: str, oracle: bool = True) -> WorkspaceConfig:
    """Of the 16 images: 3 validation, 2 calibration, 3 seed, 8 left to choose from, 3 a round."""
    return WorkspaceConfig(
        source=source,
        seed_labels=SEED,
        calibration_images=CALIBRATION,
        val_frac=VAL / (POOL + VAL),
        oracle=oracle,
        overrides=(f"budget.amount={BUDGET}", *settings),
        imported_at="2026-01-01T00:00:00+00:00",
    )


def make_small_campaign(folder: Path) -> Workspace:
    """A workspace whose nights take seconds."""
    workspace = Workspace(folder / "tiny")
    create_workspace(workspace.root, workspace_config(make_source(folder / "source")))
    fake_heavy_stages(workspace)
    return workspace


def fake_heavy_stages(workspace: Workspace) -> None:
    """Replace the commands of the stages that need torch, and commit that."""
    text = workspace.dvc_yaml.read_text()
    for stage in FAKED:
        command = f"cmd: python -m tasks {stage}\n"
        assert command in text
        text = text.replace(command, f"cmd: python {FAKE_STAGES} {stage}\n")
    workspace.dvc_yaml.write_text(text)
    git.commit(workspace, "Replace the heavy stages")


def mlflow_client(workspace: Workspace) -> "MlflowClient":
    """Of the MLflow that the campaign's nights write to."""
    from mlflow import MlflowClient  # takes seconds to import

    return MlflowClient(tracking_uri(workspace.root))


def inject_fault(workspace: Workspace, stage: str, fault: str) -> Path:
    """Make a replaced stage misbehave until the file is removed."""
    path = workspace.root / ".gleaner" / f"fault-{stage}"
    files.write_bytes(path, fault.encode())
    return path


def subprocess_env(**changes: str) -> dict[str, str]:
    """For child processes: this Python's programs, this checkout's packages, no server."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    inherited = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_HOME")}
    return {**inherited, "PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **changes}


def run_gleaner(
    *arguments: str, cwd: Path, timeout_s: float = 300, new_interpreter: bool = False, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a process of its own.

    Args:
        arguments: of the command.
        cwd: its folder.
        timeout_s: when to give it up.
        new_interpreter: start Python for it; else, the libraries that take seconds to import are there already.
        changes: environment variables.
    """
    environment = subprocess_env(**changes)
    if not new_interpreter:
        return run_preloaded(arguments, cwd, environment, timeout_s)
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
