import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tasks.data.archives import ArchiveLimits, FolderSource, ZipSource, open_source
from tasks.data.errors import ArchiveError


def packed(path: Path, files: Mapping[str, bytes | str], *, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_folder_and_a_zip_hold_the_same_files(tmp_path: Path) -> None:
    files = {"a.json": b"{}", "images/p 1.jpg": b"x", "images/ü.jpg": b"yy", ".hidden": b"", "__MACOSX/a": b""}
    for name, content in files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    for path in (tmp_path / "set", packed(tmp_path / "set.zip", files)):
        source = open_source(path)
        assert list(source.names()) == ["a.json", "images/p 1.jpg", "images/ü.jpg"]
        assert (source.size("images/ü.jpg"), source.read("images/ü.jpg"), source.read("a.json", 1)) == (2, b"yy", b"{")
        with pytest.raises(ArchiveError, match="is missing"):
            source.read("../set.zip")
        source.close()


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "C:/a", "..\\a"])
def test_a_name_that_leaves_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="expected a path inside the archive"):
        open_source(packed(tmp_path / "a.zip", {name: b""}))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (ArchiveLimits(max_files=1), "number of files is 2, expected at most 1"),
        (ArchiveLimits(max_file_bytes=10), "'a' has 2000000 bytes"),
        (ArchiveLimits(max_total_bytes=10, max_ratio=2000), "unpacked size is 2000001 bytes"),
        (ArchiveLimits(max_ratio=100), "unpacks to"),
        (ArchiveLimits(max_name_length=0), "a name is 1 characters long"),
    ],
)
def test_limits_are_kept(tmp_path: Path, limits: ArchiveLimits, words: str) -> None:
    with pytest.raises(ArchiveError, match=words):
        open_source(packed(tmp_path / "a.zip", {"a": b"0" * 2_000_000, "b": b"1"}), limits)


def test_what_is_no_whole_zip_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"a": os.urandom(4000)}, compression=zipfile.ZIP_STORED)
    content = path.read_bytes()
    for broken in (content[:2000], b"text", b""):
        path.write_bytes(broken)
        with pytest.raises(ArchiveError, match="expected a folder or a zip archive"):
            open_source(path)
    path.write_bytes(content[:100] + b"?" * 50 + content[150:])
    with pytest.raises(ArchiveError, match="is unreadable"):
        open_source(path).read("a")
    with pytest.raises(ArchiveError, match="the path is missing"):
        open_source(tmp_path / "nothing")


def test_utf8_names_without_their_flag_are_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"ü.txt": b"x"})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(signature) + offset
        content[at : at + 2] = b"\x00\x00"
    path.write_bytes(content)
    source = open_source(path)
    assert isinstance(source, ZipSource)
    assert list(source.names()) == ["ü.txt"]
    assert source.open("ü.txt").read() == b"x"


def test_links_are_followed_only_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/b.jpg").write_bytes(b"b")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.jpg").symlink_to(tmp_path / "far/b.jpg")
    (tmp_path / "set/sub").symlink_to(tmp_path / "far")
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    source = FolderSource(tmp_path / "set")
    assert (list(source.names()), sorted(source.skipped_links)) == ([], ["a.jpg", "loop", "sub"])
    assert list(FolderSource(tmp_path / "set", follow_links=True).names()) == ["a.jpg", "sub/b.jpg"]


def test_a_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"T\xfcr.txt")).write_bytes(b"x")
    source = open_source(tmp_path)
    assert [source.read(name) for name in source.names()] == [b"x"]
