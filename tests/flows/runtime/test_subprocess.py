import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from flows.runtime.fork_server import start_forked
from flows.runtime.subprocess import ProcessTimeout, run_streaming, stream_output
from tests.flows.small_campaign import REPOSITORY, subprocess_env

Stream = Callable[..., int]


def stream_interpreter(code: str, cwd: Path, on_line: Callable[[str], None], **options: float) -> int:
    """Run ``code`` in an interpreter of its own."""
    return run_streaming([sys.executable, "-u", "-c", code], cwd=cwd, env=os.environ, on_line=on_line, **options)


def stream_fork(code: str, cwd: Path, on_line: Callable[[str], None], **options: float) -> int:
    """Run ``code`` in a fork of this thread's server."""
    return stream_output(start_code(code, cwd), on_line=on_line, **options)


def start_code(code: str, cwd: Path, program: str = "tests.flows.runtime.run_code", **changes: str) -> Any:
    env = {**subprocess_env(PYTHONUNBUFFERED="1"), **changes}
    modules = ["json", "subprocess"]
    return start_forked(program, [code], modules=modules, cwd=cwd, env=env, parent_death_signal=signal.SIGTERM)


@pytest.fixture(params=[stream_interpreter, stream_fork])
def stream(request: pytest.FixtureRequest) -> Stream:
    """Both ways to start a child that prints."""
    chosen: Stream = request.param
    return chosen


def test_lines_of_both_streams_arrive_as_they_are_printed(stream: Stream, tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('one'); sys.stderr.write('two\\n'); print('half\\rwhole'); sys.exit(5)"
    assert stream(code, tmp_path, lines.append) == 5
    assert lines == ["one", "two", "half", "whole"]


def test_bytes_that_are_no_text_do_not_stop_the_stream(stream: Stream, tmp_path: Path) -> None:
    lines: list[str] = []
    assert stream("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n')", tmp_path, lines.append) == 0
    assert len(lines) == 1


class Interrupted(BaseException):
    """As Prefect's cancellation: no Exception."""


def test_an_interruption_ends_the_whole_group(stream: Stream, tmp_path: Path) -> None:
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
        stream(code, tmp_path, take)
    wait_until_gone(pids[0])


def test_a_grandchild_gets_the_time_to_keep_its_state(stream: Stream, tmp_path: Path) -> None:
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
        stream(code, tmp_path, take)
    assert (tmp_path / "state").read_text() == "kept"


def test_a_child_that_takes_too_long_is_ended(stream: Stream, tmp_path: Path) -> None:
    started_s = time.monotonic()
    with pytest.raises(ProcessTimeout):
        stream("import time; print(1); time.sleep(60)", tmp_path, print, limit_s=1.0)
    assert time.monotonic() - started_s < 10


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(stream: Stream, tmp_path: Path) -> None:
    def take(line: str) -> None:
        raise Interrupted

    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    started_s = time.monotonic()
    with pytest.raises(Interrupted):
        stream(code, tmp_path, take, grace_s=0.3)
    assert 0.3 <= time.monotonic() - started_s < 10


PARENTS = {
    "interpreter": (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from flows.runtime.subprocess import run_streaming\n"
        "child = [sys.executable, '-u', '-c', 'import os, time; print(os.getpid()); time.sleep(60)']\n"
        "run_streaming(child, cwd=Path('.'), env=os.environ, on_line=lambda line: print(line, flush=True))"
    ),
    "fork": (
        "from pathlib import Path\n"
        "from tests.flows.runtime.test_subprocess import stream_fork\n"
        "code = 'import os, time; print(os.getpid()); time.sleep(60)'\n"
        "stream_fork(code, Path('.'), lambda line: print(line, flush=True))"
    ),
}


@pytest.mark.parametrize("kind", PARENTS)
def test_the_child_of_a_killed_parent_ends(kind: str, tmp_path: Path) -> None:
    command, env = [sys.executable, "-c", PARENTS[kind]], subprocess_env(PYTHONPATH=str(REPOSITORY))
    parent = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    child.wait(timeout=10)


TELL = "import json, os, sys; print(json.dumps([os.getppid(), os.getsid(0), os.getpid(), os.getcwd(), sys.argv[0]]))"


def test_commands_are_forks_of_one_server_with_a_session_and_folder_of_their_own(tmp_path: Path) -> None:
    told: list[Any] = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        assert stream_fork(TELL, tmp_path / name, lambda line: told.append(json.loads(line))) == 0
    (server, *first), (same_server, *second) = told
    assert server == same_server != os.getpid()
    for name, (session, pid, folder, program) in zip(("first", "second"), (first, second), strict=True):
        assert (session, folder) == (pid, str(tmp_path / name))
        assert program.endswith("run_code.py")
    assert first[1] != second[1]


def test_a_fork_has_the_environment_it_was_given(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import os; print(os.environ.get('ONE'), os.environ.get('TWO'))"
    for changes in ({"ONE": "1"}, {"TWO": "2"}):
        assert stream_output(start_code(code, tmp_path, **changes), on_line=lines.append) == 0
    assert lines == ["1 None", "None 2"]


def test_what_an_interpreter_reads_at_its_start_asks_for_another_server(tmp_path: Path) -> None:
    lines: list[str] = []
    for warnings in ("default", "ignore"):
        process = start_code("import os, sys; print(os.getppid(), sys.warnoptions)", tmp_path, PYTHONWARNINGS=warnings)
        assert stream_output(process, on_line=lines.append) == 0
    (first, options), (second, other_options) = (line.split(" ", 1) for line in lines)
    assert first != second
    assert (options, other_options) == ("['default']", "['ignore']")


@pytest.mark.parametrize("ending", ["sys.exit(7)", "os.kill(os.getpid(), 15)"])
def test_the_code_of_a_fork_is_that_of_a_process(tmp_path: Path, ending: str) -> None:
    code = stream_fork(f"import os, sys; {ending}", tmp_path, print)
    assert code == stream_interpreter(f"import os, sys; {ending}", tmp_path, print)


def test_a_second_command_beside_the_first_gets_another_server(tmp_path: Path) -> None:
    first = start_code("import os; print(os.getppid())", tmp_path)
    second = start_code("import os; print(os.getppid())", tmp_path)
    servers: list[str] = []
    for process in (second, first):
        stream_output(process, on_line=servers.append)
    assert servers[0] != servers[1]


def test_a_command_of_a_killed_server_ends_and_the_next_one_gets_a_new_server(tmp_path: Path) -> None:
    def kill_server(line: str) -> None:
        os.kill(int(line), signal.SIGKILL)

    code = "import os, time; print(os.getppid()); time.sleep(60)"
    assert stream_fork(code, tmp_path, kill_server) < 0
    assert stream_fork("print(1)", tmp_path, print) == 0


def test_each_thread_has_a_server_that_ends_with_it(tmp_path: Path) -> None:
    servers: list[int] = []

    def tell() -> None:
        stream_fork("import os; print(os.getppid())", tmp_path, lambda line: servers.append(int(line)))

    tell()
    thread = Thread(target=tell)
    thread.start()
    thread.join()
    assert servers[0] != servers[1]
    wait_until_gone(servers[1])
    assert psutil.pid_exists(servers[0])


def wait_until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_fork_of_this_process_starts_a_server_of_its_own(tmp_path: Path) -> None:
    stream_fork("print(1)", tmp_path, print)
    child = os.fork()
    if child == 0:
        os._exit(stream_fork("raise SystemExit(3)", tmp_path, print))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert stream_fork("print(2)", tmp_path, print) == 0


@pytest.mark.parametrize("changes", [{"LARGE": "x" * 120_000, "LARGER": "x" * 120_000}, {"PYTHONHOME": "/nowhere"}])
def test_where_no_server_can_be_used_the_program_is_started(tmp_path: Path, changes: dict[str, str]) -> None:
    code = stream_output(start_code("raise SystemExit(3)", tmp_path, **changes), on_line=print)
    assert code == (1 if "PYTHONHOME" in changes else 3)  # no interpreter starts there


def test_a_program_that_does_not_exist_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    assert stream_output(start_code("", tmp_path, program="no_such_program"), on_line=lines.append) == 1
    assert "No module named no_such_program" in lines[-1]
