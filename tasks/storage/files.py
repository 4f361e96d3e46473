"""Write files that are either whole or absent (temporary name, fsync, rename), and compute digests."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from tasks.runtime.errors import UserError

_CHUNK_BYTES = 1 << 20
ROW_GROUP_ROWS = 1 << 17
"""Of a table that is written as it grows: its writer holds no more rows than these."""
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first where PyYAML was built with libyaml


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; on success fsync it and rename it over ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    # Made here, under a name nobody knows, with the rights that the user's umask leaves (tempfile gives 0600 always).
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``path``; on success write it through to the disk and give it its name.

    Folders that killed calls for the same path left behind are removed.

    Raises:
        OSError: ``path`` exists, and is not an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.sync()  # one call for however many files
        temporary.rename(path)
        _fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def json_lines(content: bytes, errors: str = "strict") -> list[str]:
    """Return the lines of a JSON Lines document but the empty ones.

    Just a line feed ends a line. ``str.splitlines`` would also divide a text at U+2028 and others, which JSON leaves
    as they are: a class name with one would make the file unreadable.

    Args:
        content: of the file, UTF-8.
        errors: what is done where it is not, as for ``bytes.decode``.
    """
    return [line for line in content.decode("utf-8", errors).split("\n") if line]


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: keys in the order given, two-space indent, final newline."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing, not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(path, "the file is missing, expected JSON") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(path, f"the content is not JSON ({error}), expected JSON") from None


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML of plain values by libyaml, six times as fast as PyYAML's own parser.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, _YamlLoader)  # noqa: S506 (a safe loader)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet table atomically."""
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Yield what appends rows to a Parquet table, which is whole and in its place when the block ends without an error.

    Up to ``ROW_GROUP_ROWS`` rows, the file has the bytes of ``write_table``; above, its row groups are smaller.
    """
    pending = [schema.empty_table()]

    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:

        def append(rows: pa.Table) -> None:
            pending.append(rows)
            while sum(len(part) for part in pending) > ROW_GROUP_ROWS:
                whole = pa.concat_tables(pending)
                writer.write_table(whole.slice(0, ROW_GROUP_ROWS))
                pending[:] = [whole.slice(ROW_GROUP_ROWS)]

        yield append
        writer.write_table(pa.concat_tables(pending))


class TableSpool:
    """Tables that wait in a temporary file next to ``path`` until all of them are known; it is gone after the block."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Open the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        self._sink = pa.OSFile(str(self._temporary), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema)
        self._schema, self._num_rows = schema, 0

    def __enter__(self) -> "TableSpool":
        return self

    def __exit__(self, *_: object) -> None:
        self._sink.close()
        self._temporary.unlink(missing_ok=True)

    def append(self, table: pa.Table) -> None:
        """Keep a table."""
        self._writer.write_table(table)
        self._num_rows += len(table)

    def read(self) -> Iterator[pa.Table]:
        """Yield the tables in their order, when all are there; those of several chunks come in parts."""
        if not self._sink.closed:
            self._writer.close()
            self._sink.close()
        with pa.OSFile(str(self._temporary), "rb") as source, pa.ipc.open_file(source) as reader:
            for number in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(number)])

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of numbers of all tables, when all are there."""
        values = np.empty(self._num_rows, self._schema.field(name).type.to_pandas_dtype())
        start = 0
        for table in self.read():
            values[start : start + len(table)] = table[name].to_numpy()
            start += len(table)
        return values


def row_groups(path: Path, schema: pa.Schema, *, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield a table in parts, one in memory at a time; arguments and errors are those of ``read_table``."""
    for number in range(len(row_group_sizes(path, schema))):
        yield read_row_group(path, schema, number, columns=columns)


def row_group_sizes(path: Path, schema: pa.Schema) -> list[int]:
    """Return how many rows each part of a table has; errors are those of ``read_table``."""
    with _open_table(path, schema) as file:
        return [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]


def read_row_group(path: Path, schema: pa.Schema, number: int, *, columns: Sequence[str]) -> pa.Table:
    """Read columns of one part of a table; errors are those of ``read_table``."""
    with _open_table(path, schema) as file:
        return file.read_row_group(number, columns=list(columns)).select(list(columns))


def read_table(path: Path, schema: pa.Schema, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet table, or some of its columns, and check that it has the columns of ``schema``.

    Args:
        path: the table.
        schema: all columns that it must have.
        columns: those that are read, in this order; None for all.

    Raises:
        UserError: the file is missing, unreadable, or its columns are not those of ``schema``.
    """
    with _open_table(path, schema) as file:
        table = file.read(columns=None if columns is None else list(columns))
    return table if columns is None else table.select(list(columns))


@contextmanager
def _open_table(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    """Open a Parquet table for reading; what the block meets of broken content becomes a UserError."""
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
            if not found.equals(schema):
                raise UserError(path, f"the columns are {found.names}, expected {schema.names} with their types")
            yield file
    except FileNotFoundError:
        raise UserError(path, "the file is missing, expected a Parquet table") from None
    except pa.ArrowInvalid as error:
        raise UserError(path, f"the content is unreadable ({error}), expected a Parquet table") from None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_bytes(content: bytes) -> str:
    """SHA-256, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_json(content: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no spaces), 64 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_tree(path: Path, keep: Callable[[Path], bool] = lambda _: True) -> str:
    """SHA-256 of a file, or of a folder's relative names and contents, 64 hex digits."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(found for found in path.rglob("*") if found.is_file() and keep(found))
    return sha256_json([[found.relative_to(path).as_posix(), sha256_file(found)] for found in files])


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
