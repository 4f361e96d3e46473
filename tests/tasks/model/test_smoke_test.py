"""The probe, as the doctor runs it: in a process of its own, with the real networks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.data.paths import Workspace

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[3]


def probe(workspace: Workspace) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tasks.model.smoke_test"],
        cwd=workspace.root,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": "/"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_start_weights_load_and_see(tiny_campaign: Workspace) -> None:
    done = probe(tiny_campaign)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["weights"] == "the start weights (imagenet)"
    assert found["device"] in ("cpu", "cuda")
    assert found["load_seconds"] > 0
    assert found["forward_seconds"] > 0
    assert 100 << 20 < found["peak_memory_bytes"] < 20 << 30
    assert [path.name for path in tiny_campaign.root.iterdir() if path.name == "derived"] == []


def test_weights_that_are_none_end_in_one_line(tiny_campaign: Workspace) -> None:
    teacher = tiny_campaign.derived("train") / "teacher.pth"
    teacher.parent.mkdir(parents=True)
    teacher.write_bytes(b"cut off in the midd")
    done = probe(tiny_campaign)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "the weights are unusable" in done.stderr
