"""Files are whole or absent, whatever happens in between; paths from outside stay inside."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.data.paths import image_id_from_sha256, resolve_uri
from tasks.data.schemas import PREVIOUS_UNCERTAINTY
from tasks.runtime.errors import UserError
from tasks.storage import files


def test_a_failed_write_leaves_the_old_content_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_bytes(path, b"old")

    def fail_half_way() -> None:
        with files.atomic_write(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_and_does_not_touch_a_linked_copy(tmp_path: Path) -> None:
    path, linked = tmp_path / "a.txt", tmp_path / "cache.txt"
    files.write_bytes(path, b"old")
    linked.hardlink_to(path)  # what DVC's cache does
    files.write_bytes(path, b"new")
    assert linked.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    files.write_table(tmp_path / "t.parquet", pa.table({"other": [1]}))
    with pytest.raises(UserError, match=r"the columns are \['other'\], expected \['image_id', 'uncertainty'\]"):
        files.read_table(tmp_path / "t.parquet", PREVIOUS_UNCERTAINTY)


def test_a_torn_table_is_refused(tmp_path: Path) -> None:
    files.write_table(tmp_path / "t.parquet", PREVIOUS_UNCERTAINTY.empty_table())
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="unreadable"):
        files.read_table(tmp_path / "t.parquet", PREVIOUS_UNCERTAINTY)


def test_the_digest_of_a_folder_knows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = files.sha256_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = files.sha256_tree(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, renamed, files.sha256_tree(tmp_path)}) == 3


@pytest.mark.parametrize("uri", ["../secret.png", "/etc/passwd", "data/../../x.png"])
def test_an_image_uri_never_leaves_the_workspace(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ValueError, match="inside the workspace"):
        resolve_uri(tmp_path, uri)


def test_a_link_out_of_the_workspace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="inside the workspace"):
        resolve_uri(tmp_path / "w", "link/x.png")


def test_identity_is_the_content() -> None:
    assert image_id_from_sha256("0123456789abcdef" + "f" * 48) == "0123456789abcdef"


def test_a_table_is_checked_whole_and_read_by_columns(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.float64())])
    files.write_table(tmp_path / "t.parquet", pa.table({"a": [1], "b": ["x"], "c": [0.5]}, schema=schema))
    assert files.read_table(tmp_path / "t.parquet", schema, columns=["c", "a"]).to_pydict() == {"c": [0.5], "a": [1]}
    with pytest.raises(UserError, match="the columns are"):
        files.read_table(tmp_path / "t.parquet", pa.schema([("c", pa.float64())]), columns=["c"])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_rights_that_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.write_bytes(tmp_path / "a", b"x")
        files.write_bytes(tmp_path / "a", b"y")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("limit", "sizes"), [(files.ROW_GROUP_ROWS, [10]), (4, [4, 4, 2])])
def test_a_table_written_in_parts_has_the_rows_of_one_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(files, "ROW_GROUP_ROWS", limit)
    whole = pa.table({"image_id": list("abcdefghij"), "uncertainty": range(10)}, schema=PREVIOUS_UNCERTAINTY)
    files.write_table(tmp_path / "whole.parquet", whole)
    with files.table_writer(tmp_path / "parts.parquet", PREVIOUS_UNCERTAINTY) as append:
        for start, stop in ((0, 3), (3, 3), (3, 10)):
            append(whole.slice(start, stop - start))
    written = [(tmp_path / name).read_bytes() for name in ("whole.parquet", "parts.parquet")]
    assert (written[0] == written[1]) == (len(sizes) == 1)
    assert files.row_group_sizes(tmp_path / "parts.parquet", PREVIOUS_UNCERTAINTY) == sizes
    parts = list(files.row_groups(tmp_path / "parts.parquet", PREVIOUS_UNCERTAINTY, columns=["uncertainty"]))
    assert pa.concat_tables(parts) == whole.select(["uncertainty"])


def test_spooled_tables_come_back_and_leave_nothing(tmp_path: Path) -> None:
    tables = [pa.table({"a": [1, 2]}), pa.table({"a": [3]})]
    with files.TableSpool(tmp_path / "t", tables[0].schema) as spool:
        for table in tables:
            spool.append(table)
        assert spool.column("a").tolist() == [1, 2, 3]
        assert list(spool.read()) == tables
    assert not list(tmp_path.iterdir())
