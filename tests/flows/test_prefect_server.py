"""Prefect's private server, started by commands that know nothing of each other."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.small_campaign import subprocess_env

_COMMAND = """
import sys, urllib.request, os
from pathlib import Path
from flows.prefect_server import ensure_prefect_api

ensure_prefect_api(Path(sys.argv[1]))
print(urllib.request.urlopen(os.environ["PREFECT_API_URL"] + "/health").read().decode())
"""


@pytest.mark.integration
def test_three_commands_may_begin_at_once_in_a_new_folder(tmp_path: Path) -> None:
    """All lay out the database of the one folder; without a turn for each, Prefect's migrations collide."""
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", _COMMAND, str(tmp_path / "new")],
            env=subprocess_env(HOME=str(tmp_path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    said = [command.communicate(timeout=300)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0, 0], said
    assert [text.strip() for text in said] == ["true"] * 3
