"""Campaigns that share a GPU, as processes of their own."""

import threading
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

import flows.runtime.gpu_lock as gpu_lock_module
from flows.runtime import gpu_lock
from tasks.runtime.errors import UserError
from tests.flows.workspace.test_lock import child, next_line

QUEUE = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from flows.runtime.gpu_lock import gpu_lock\n"
    "def say(words): print(words, flush=True)\n"
    "with gpu_lock(Path(sys.argv[1]), sys.argv[2], say):\n"
    "    say('mine')\n"
    "    sys.stdin.readline()"
)


@pytest.mark.integration
def test_campaigns_get_a_gpu_in_the_order_they_came_and_a_killed_one_gives_it_back(tmp_path: Path) -> None:
    lock = str(tmp_path / "gpu-0.lock")
    with child(QUEUE, lock, "first") as first:
        assert next_line(first) == "mine"
        with child(QUEUE, lock, "second") as second:
            assert next_line(second) == "waiting for the GPU, which is in use by first"
            with child(QUEUE, lock, "third") as third:
                assert next_line(third) == "waiting for the GPU, which is in use by first"
                first.kill()
                assert next_line(second) == "mine"
                assert next_line(third) == "waiting for the GPU, which is in use by second"
                assert second.stdin is not None
                second.stdin.write("done\n")
                second.stdin.flush()
                assert next_line(third) == "mine"
    with FileLock(lock, timeout=10):  # the last one was killed, and left nothing locked
        pass


@pytest.mark.parametrize(
    ("nodes", "named", "expected"),
    [
        ((), None, []),
        ((), "0", []),
        (("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"), None, ["0", "1"]),
        (("nvidia0", "nvidia1"), "1", ["1"]),
        (("nvidia0", "nvidia1"), "1, 0", ["0", "1"]),
        (("nvidia0",), "", []),
        (("nvidia0",), "-1", []),
        (("nvidia0",), "GPU-8a1b/2", ["GPU-8a1b/2"]),
    ],
)
def test_the_gpus_a_stage_may_use_are_found_without_asking_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: tuple[str, ...], named: str | None, expected: list[str]
) -> None:
    for node in nodes:
        (tmp_path / node).touch()
    monkeypatch.setattr(gpu_lock, "_DEVICES_DIR", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpu_lock.visible_gpus() == expected
    assert all(
        gpu_lock.gpu_lock_path(name).name.startswith("gpu-") and "/" not in gpu_lock.gpu_lock_path(name).name
        for name in expected
    )


def test_only_stages_that_compute_on_a_gpu_lock_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lock, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(gpu_lock, "has_prefect_server", lambda: False)
    monkeypatch.setenv("GLEANER_LOCK_DIR", str(tmp_path / "locks"))
    with gpu_lock.gpu_locks("score", "a campaign", lambda _: None):
        assert not (tmp_path / "locks").exists()
    locks = [gpu_lock.gpu_lock_path(gpu) for gpu in ("0", "1")]
    with gpu_lock.gpu_locks("train", "a campaign", lambda _: None):
        assert [path.read_text() for path in locks] == ["a campaign"] * 2
        for path in locks:
            with pytest.raises(Timeout):
                FileLock(path, timeout=0).acquire()
    for path in locks:
        assert path.read_text() == ""
        FileLock(path, timeout=0).acquire()


def test_the_gpu_is_given_back_where_the_stage_fails(tmp_path: Path) -> None:
    lock = tmp_path / "gpu-0.lock"
    with pytest.raises(RuntimeError), gpu_lock.gpu_lock(lock, "a campaign", lambda _: None):
        raise RuntimeError
    assert lock.read_text() == ""
    FileLock(lock, timeout=0).acquire()


def test_a_campaign_that_has_just_finished_does_not_overtake_the_one_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_lock, "_POLL_INTERVAL_S", 0.2)
    lock, used_by, is_waiting = tmp_path / "gpu-0.lock", [], threading.Event()

    def wait_for_it() -> None:
        with gpu_lock.gpu_lock(lock, "second", lambda _: is_waiting.set()):
            used_by.append("second")

    thread = threading.Thread(target=wait_for_it)
    with gpu_lock.gpu_lock(lock, "first", lambda _: None):
        used_by.append("first")
        thread.start()
        assert is_waiting.wait(30)
    with gpu_lock.gpu_lock(lock, "first", lambda _: None):
        used_by.append("first")
    thread.join()
    assert used_by == ["first", "second", "first"]


@pytest.mark.parametrize("name", ["gpu-0.lock", "gpu-0.next"])
def test_a_link_in_the_place_of_a_lock_leads_nowhere(tmp_path: Path, name: str) -> None:
    """The folder can be written by every user of the machine, also while a turn begins or ends."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    victim.chmod(0o600)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / name).symlink_to(victim)
    gpu_lock_module._write_owner(tmp_path / "locks" / name, "theirs")
    with (
        pytest.raises(UserError, match=rf"{name}.*Too many levels of symbolic links"),
        gpu_lock.gpu_lock(tmp_path / "locks" / "gpu-0.lock", "a campaign", lambda _: None),
    ):
        pass
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("mine", 0o600)


def test_the_folder_of_locks_is_for_every_user(tmp_path: Path) -> None:
    gpu_lock_module._create_shared_dir(tmp_path / "deep" / "locks")
    assert (tmp_path / "deep" / "locks").stat().st_mode & 0o7777 == 0o777
