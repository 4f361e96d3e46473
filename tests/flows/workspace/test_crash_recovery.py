import os
import subprocess
import sys
import time

import psutil
import pytest

from flows.workspace import git
from flows.workspace.run_lock import run_lock
from tasks.data.paths import Workspace


@pytest.mark.parametrize("name", ["index.lock", "HEAD.lock", "config.lock", "refs/heads/main.lock"])
def test_a_git_lock_left_by_a_dead_git_is_dropped_and_a_fresh_one_is_not(small_campaign: Workspace, name: str) -> None:
    lock = small_campaign.root / ".git" / name
    lock.touch()
    with run_lock(small_campaign):
        assert lock.exists()
    an_hour_ago_s = time.time() - 3600
    os.utime(lock, (an_hour_ago_s, an_hour_ago_s))
    with run_lock(small_campaign):
        assert not lock.exists()


@pytest.mark.parametrize(
    ("content", "stays"),
    [
        ('{"write": {', False),
        ("[]", False),
        ('{"write": {"/x": {"pid": 1, "cmd": "dvc repro"}}, "read": {}}', False),  # in use again, by another program
        ('{"write": {}, "read": {"/x": [{"pid": %d, "cmd": "dvc repro"}]}}', True),
    ],
)
def test_a_dvc_lock_is_dropped_unless_dvc_holds_it(small_campaign: Workspace, content: str, stays: bool) -> None:
    somebody = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"])
    lock = small_campaign.root / ".dvc" / "tmp" / "rwlock"
    lock.write_text(content.replace("%d", str(somebody.pid)))
    while "dvc" not in psutil.Process(somebody.pid).cmdline():
        time.sleep(0.01)
    try:
        with run_lock(small_campaign):
            assert lock.exists() == stays
    finally:
        somebody.kill()
        somebody.wait()


WHOLE = """schema: '2.0'
stages:
  prepare:
    cmd: python -m tasks prepare
    outs:
    - path: derived/prepare
      hash: md5
      md5: af61381473cf8dfe51e61a740052c3db.dir
"""


@pytest.mark.parametrize("length", [0, 10, 30, WHOLE.index("    outs"), WHOLE.index("      md5"), len(WHOLE) - 60])
def test_half_a_dvc_lock_file_is_replaced_by_the_committed_one(small_campaign: Workspace, length: int) -> None:
    path = small_campaign.root / "dvc.lock"
    path.write_text(WHOLE)
    git.commit(small_campaign, "a round")
    path.write_text(WHOLE[:length])
    with run_lock(small_campaign):
        assert path.read_text() == WHOLE


def test_half_a_first_dvc_lock_file_is_dropped_and_a_whole_one_stays(small_campaign: Workspace) -> None:
    path = small_campaign.root / "dvc.lock"
    path.write_text(WHOLE[:-40])
    with run_lock(small_campaign):
        assert not path.exists()
    path.write_text(WHOLE)
    with run_lock(small_campaign):
        assert path.read_text() == WHOLE
