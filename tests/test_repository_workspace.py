"""The repository root is a workspace on the demo data: ``dvc repro`` draws them and makes the round, with no server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.data.paths import STAGES
from tests.flows.small_campaign import subprocess_env

ROOT = Path(__file__).parents[1]
DRAW = "examples/digits/dvc.yaml:draw"
SMALL_PARAMS = {
    "model": {"fpn_channels": 32, "short_side_px": 64, "long_side_px": 96},
    "train": {"iterations": 4, "burn_in_iterations": 2, "warmup_iterations": 1, "num_workers": 0},
    "budget": {"amount": 5},
}


SMALL_DIGITS = {"pool_images": 20, "val_images": 6, "seed_images": 4, "calibration_images": 4}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of this repository that DVC reads, in a git repository of their own, with a smaller round."""
    for name in ("tasks", "detectron_ext", "examples", ".dvc"):
        ignored = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in SMALL_PARAMS.items():
        params[section] |= values
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "examples" / "digits" / "params.yaml").write_text(yaml.safe_dump(SMALL_DIGITS))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def repro(folder: Path, *targets: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *targets],
        cwd=folder,
        env={**subprocess_env(), "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rerun_stages(folder: Path) -> list[str]:
    output = repro(folder)
    return [stage for stage in (DRAW, *STAGES) if f"Running stage '{stage}'" in output]


@pytest.mark.e2e
def test_dvc_repro_makes_the_round_and_then_only_what_changed(checkout: Path) -> None:
    output = repro(checkout)
    assert [stage for stage in (DRAW, *STAGES) if f"Running stage '{stage}'" not in output] == []
    picked = json.loads((checkout / "derived" / "select" / "summary.json").read_text())["selected"]
    assert picked == 5
    assert (checkout / "derived" / "report" / "report.html").stat().st_size > 10_000

    params = yaml.safe_load((checkout / "params.yaml").read_text())
    params["budget"]["amount"] = 3
    (checkout / "params.yaml").write_text(yaml.safe_dump(params))
    assert rerun_stages(checkout) == ["select", "handoff", "report"]

    digits = {**SMALL_DIGITS, "seed_images": 5}
    (checkout / "examples" / "digits" / "params.yaml").write_text(yaml.safe_dump(digits))
    assert rerun_stages(checkout)[0] == DRAW

    source = checkout / "tasks" / "selection" / "budget.py"
    source.write_text(source.read_text() + "\n# another comment\n")
    assert rerun_stages(checkout) == ["select"]
