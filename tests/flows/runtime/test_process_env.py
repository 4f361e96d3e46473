"""What every child process gets from the environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.runtime.process_env import prepare_environment


def test_files_of_a_campaign_take_the_place_of_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    prepare_environment(tmp_path)
    for name in ("random", "yaml", "select"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the campaign was imported')")
    code = "import random, yaml, select, runpy; runpy.run_module('json.tool', run_name='other')"
    for arguments in (["-c", code], ["-m", "yaml"]):
        child = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "of the campaign" not in child.stderr
