"""What every child process gets from the environment."""

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.runtime import process_env
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


def test_a_user_whom_the_machine_does_not_know_has_a_name_and_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in OpenShift."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(process_env.pwd, "getpwuid", unknown)
    for variable in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "PREFECT_HOME"):
        monkeypatch.setenv(variable, "")  # so that monkeypatch restores what is set below
        monkeypatch.delenv(variable)
    prepare_environment(tmp_path)
    assert Path("~/x").expanduser() == tmp_path / ".gleaner" / "home" / "x"
    assert getpass.getuser() == f"uid-{os.getuid()}"
