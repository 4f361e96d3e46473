"""A directory that others may write: links that they plant lead nowhere."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.storage.backends import COMPLETE_MARKER, LocalStorage, StorageError


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the user's that no link of the share may lead to."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "README.md").write_text("mine")
    return tmp_path / "victim"


def publish(share: Path) -> None:
    LocalStorage(share).write_batch("outbox/batch-0001", {"README.md": b"theirs", "images/a.png": b"x"}, b"{}")


def test_a_link_in_the_place_of_the_unfinished_folder_is_not_followed(share: Path, victim: Path) -> None:
    (share / "outbox").mkdir()
    (share / "outbox" / ".batch-0001.tmp").symlink_to(victim)
    (share / "outbox" / ".batch-0001.0.tmp").symlink_to(victim)
    publish(share)
    assert [(path.name, path.read_text()) for path in victim.iterdir()] == [("README.md", "mine")]
    assert (share / "outbox" / "batch-0001" / "README.md").read_bytes() == b"theirs"
    assert not (share / "outbox" / "batch-0001").is_symlink()


@pytest.mark.parametrize("place", ["outbox", "outbox/batch-0001"])
def test_a_link_on_the_way_is_refused_by_name(share: Path, victim: Path, place: str) -> None:
    (share / place).parent.mkdir(exist_ok=True)
    (share / place).symlink_to(victim)
    with pytest.raises(StorageError, match=f"{place}: the path is a link"):
        publish(share)
    with pytest.raises(StorageError, match="the path is a link"):
        LocalStorage(share).write("outbox/batch-0001/withdrawn.json", b"{}")
    with pytest.raises(StorageError, match="the path is a link"):
        LocalStorage(share).read_optional("outbox/batch-0001/README.md")
    assert [(path.name, path.read_text()) for path in victim.iterdir()] == [("README.md", "mine")]


@pytest.mark.parametrize("place", ["inbox", "inbox/batch-0001"])
def test_an_inbox_that_is_a_link_is_not_read(share: Path, victim: Path, place: str) -> None:
    (share / place).parent.mkdir(exist_ok=True)
    (share / place).symlink_to(victim)
    with pytest.raises(StorageError, match=f"{place}: the path is a link"):
        LocalStorage(share).list_files("inbox/batch-0001")


def test_the_top_may_be_a_link_of_the_users_own(share: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(share)
    publish(tmp_path / "link")
    assert (share / "outbox" / "batch-0001" / COMPLETE_MARKER).is_file()


def test_what_a_killed_run_left_is_removed(share: Path) -> None:
    left = share / "outbox" / ".batch-0001.abc.tmp"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    publish(share)
    assert [path.name for path in (share / "outbox").iterdir()] == ["batch-0001"]
    shutil.rmtree(share / "outbox")


@pytest.mark.parametrize("time_s", [1e13, -1e13, 1e300])
def test_a_file_time_outside_the_calendar_is_no_fault(
    tmp_path: Path, time_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems keep any number there."""
    (tmp_path / "a.txt").write_text("x")
    real = Path.lstat

    def lstat(path: Path) -> object:
        found = real(path)
        names = [name for name in dir(found) if name.startswith("st_")]
        return SimpleNamespace(**{name: getattr(found, name) for name in names} | {"st_mtime": time_s})

    monkeypatch.setattr(Path, "lstat", lstat)
    (entry,) = LocalStorage(tmp_path).list_files("")
    assert (entry.name, entry.size_bytes, entry.modified_at.year) == ("a.txt", 1, 1970)
