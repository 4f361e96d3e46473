import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.runtime.subprocess import ProcessTimeout, run_streaming
from tests.flows.small_campaign import subprocess_env


def run(code: str, lines: list[str], cwd: Path, **options: float) -> int:
    return run_streaming([sys.executable, "-u", "-c", code], cwd=cwd, env=os.environ, on_line=lines.append, **options)


def test_lines_of_both_streams_arrive_as_they_are_printed(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('one'); sys.stderr.write('two\\n'); print('half\\rwhole'); sys.exit(5)"
    assert run(code, lines, tmp_path) == 5
    assert lines == ["one", "two", "half", "whole"]


def test_bytes_that_are_no_text_do_not_stop_the_stream(tmp_path: Path) -> None:
    lines: list[str] = []
    assert run("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n')", lines, tmp_path) == 0
    assert len(lines) == 1


class Interrupted(BaseException):
    """As Prefect's cancellation: no Exception."""


def test_an_interruption_ends_the_whole_group(tmp_path: Path) -> None:
    pids: list[int] = []

    def take(line: str) -> None:
        pids.append(int(line))
        raise Interrupted

    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with pytest.raises(Interrupted):
        run_streaming([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, on_line=take)
    deadline_s = time.monotonic() + 10
    while psutil.pid_exists(pids[0]) and psutil.Process(pids[0]).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_grandchild_gets_the_time_to_keep_its_state_though_its_parent_goes_at_once(tmp_path: Path) -> None:
    """As DVC, which leaves, and the training below it, which has to write its checkpoint first."""
    grandchild = (
        "import pathlib, signal, sys, time\n"
        "def leave(*_):\n"
        "    time.sleep(1)\n"
        "    pathlib.Path('state').write_text('kept')\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"

    def take(line: str) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        run_streaming([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, on_line=take)
    assert (tmp_path / "state").read_text() == "kept"


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with pytest.raises(ProcessTimeout):
        run("import time; print(1); time.sleep(60)", [], tmp_path, limit_s=1.0)
    assert time.monotonic() - started_s < 10


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    def take(line: str) -> None:
        raise Interrupted

    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    started_s = time.monotonic()
    with pytest.raises(Interrupted):
        run_streaming([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, on_line=take, grace_s=0.3)
    assert 0.3 <= time.monotonic() - started_s < 10


def test_the_child_of_a_killed_parent_ends(tmp_path: Path) -> None:
    parent_code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from flows.runtime.subprocess import run_streaming\n"
        "child = [sys.executable, '-u', '-c', 'import os, time; print(os.getpid()); time.sleep(60)']\n"
        "run_streaming(child, cwd=Path('.'), env=os.environ, on_line=lambda line: print(line, flush=True))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code], cwd=tmp_path, env=subprocess_env(), stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    child.wait(timeout=10)
