"""Measure `gleaner pool sync` and `prepare` on a prefix of an object store with many keys.

Run: ``python -m infra.bench.object_store --keys 10000 100000``. The store is a small HTTP server that makes up listings
and pictures; boto3 talks to it as to any other. ``--fetched`` pictures are fetched and decoded; the others are known
already, as on every sync but the first. What git and DVC do with the index is not measured.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from tasks.data.paths import Workspace
from tasks.data.schemas import ANNOTATED, INDEX, UNLABELED
from tasks.params.template import render_params
from tasks.storage import files

_PAGE_KEYS = 1000
_SIDE_PX = 64
_PREFIX = "s3://bench/pool"
_STEPS = ("list", "sync", "prepare")
_REPOSITORY = Path(__file__).parents[2]


def key(number: int) -> str:
    """Name of an object below the prefix; sorted like the numbers."""
    return f"{number // 1000:06d}/image-{number:09d}.png"


def picture(number: int) -> bytes:
    """Make up a gray PNG that no other number has."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    pixels = zlib.compress((b"\0" + bytes([number % 251]) * _SIDE_PX) * _SIDE_PX, 1)
    header = struct.pack(">IIBBBBB", _SIDE_PX, _SIDE_PX, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tEXt", b"number\0" + str(number).encode()), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in parts)


def version(number: int) -> str:
    """ETag of an object."""
    return f"{number:032x}"


class _Handler(BaseHTTPRequestHandler):
    """Answers ListObjectsV2 and GET."""

    protocol_version = "HTTP/1.1"
    num_keys = 0

    def do_GET(self) -> None:
        """Answer one request."""
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        if "list-type" in query:
            self._send(self._page(int(query.get("continuation-token", ["0"])[0])), "application/xml")
        else:
            number = int(address.path.rpartition("-")[2].removesuffix(".png"))
            self._send(picture(number), "image/png", ETag=f'"{version(number)}"')

    def _page(self, first: int) -> bytes:
        last = min(first + _PAGE_KEYS, self.num_keys)
        entries = "".join(
            f"<Contents><Key>pool/{key(number)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{version(number)}&quot;</ETag><Size>200</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for number in range(first, last)
        )
        rest = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < self.num_keys else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>bench</Name><Prefix>pool/</Prefix><MaxKeys>{_PAGE_KEYS}</MaxKeys>"
            f"<IsTruncated>{str(last < self.num_keys).lower()}</IsTruncated>{rest}{entries}</ListBucketResult>"
        ).encode()

    def _send(self, content: bytes, kind: str, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _serve(num_keys: int, port: "multiprocessing.Queue[int]") -> None:
    handler = type("Handler", (_Handler,), {"num_keys": num_keys})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    port.put(server.server_address[1])
    server.serve_forever()


@contextmanager
def made_up_store(num_keys: int) -> Iterator[str]:
    """Run the server in a process of its own; yield its address."""
    context = multiprocessing.get_context("spawn")
    port: multiprocessing.Queue[int] = context.Queue()
    server = context.Process(target=_serve, args=(num_keys, port), daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}"
    finally:
        server.kill()
        server.join()


def create_workspace(folder: Path, num_keys: int, num_fetched: int) -> Workspace:
    """Write a campaign with a pool of one image, and what is known of all but the last ``num_fetched`` objects."""
    workspace = Workspace(folder)
    template = (_REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    overrides = (f"pool.images_uri={_PREFIX}", "prepare.min_image_side_px=16")
    files.write_bytes(workspace.params, render_params(template, classes=["a"], overrides=overrides).encode())
    known = workspace.scratch("seen") / "objects.jsonl"
    known.parent.mkdir(parents=True)
    with known.open("w", encoding="utf-8") as stream:
        for number in range(num_keys - num_fetched):
            sha256 = hashlib.sha256(picture(number)).hexdigest()
            found = [f"{_PREFIX}/{key(number)}", version(number), _SIDE_PX, _SIDE_PX, ".png", 200, sha256, 1, 1]
            stream.write(json.dumps(found) + "\n")
    return workspace


def run_step(step: str) -> None:
    """Do one step in the current folder, and print processor seconds and peak of this process."""
    workspace = Workspace(Path.cwd())
    if step == "list":
        from tasks.storage.s3 import list_objects

        for _ in list_objects(_PREFIX):
            continue
    elif step == "sync":
        _sync(workspace)
    else:
        _prepare(workspace)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"\n{usage.ru_utime + usage.ru_stime} {usage.ru_maxrss}")


def _sync(workspace: Workspace) -> None:
    from flows.pool_sync import list_source
    from tasks.data.pool_diff import diff_pool
    from tasks.params import load_params

    images = list_source(workspace, load_params(workspace.params))
    _, rows = diff_pool([], images, protected_ids=(), heldout_names={}, set_aside={})
    files.write_table(workspace.index, pa.Table.from_pylist(rows, schema=INDEX))


def _prepare(workspace: Workspace) -> None:
    from tasks.params import load_params
    from tasks.prepare import prepare

    first = files.read_table(workspace.index, INDEX).slice(0, 1).to_pylist()[0]
    row = {name: first.get(name) for name in UNLABELED.names} | {"width_px": _SIDE_PX, "height_px": _SIDE_PX}
    nothing: dict[str, Any] = {"batch": 0, "boxes_xyxy": [], "class_ids": []}
    files.write_table(workspace.val, pa.Table.from_pylist([row | nothing], schema=ANNOTATED))
    prepare(
        load_params(workspace.params).prepare,
        index=workspace.index,
        val=workspace.val,
        root=workspace.root,
        out=workspace.derived("prepare"),
    )


def measure(folder: Path, num_keys: int, num_fetched: int) -> dict[str, tuple[float, float]]:
    """Return processor seconds and peak MiB of each step, each in a process of its own."""
    workspace = create_workspace(folder, num_keys, num_fetched)
    costs = {}
    with made_up_store(num_keys) as address:
        environment = {
            **os.environ, "PYTHONPATH": str(_REPOSITORY), "AWS_ENDPOINT_URL_S3": address, "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
        }  # fmt: skip
        for step in _STEPS:
            command = [sys.executable, "-W", "ignore", "-m", "infra.bench.object_store", "--step", step]
            done = subprocess.run(
                command, cwd=workspace.root, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{step} ended with code {done.returncode}: {done.stderr[-2000:]}")
            cpu_s, peak_kib = map(float, done.stdout.splitlines()[-1].split())
            costs[step] = cpu_s, peak_kib / 1024
            print(f"{num_keys:,} keys: {step} {cpu_s:.1f} s, {peak_kib / 1024:,.0f} MiB", file=sys.stderr, flush=True)
    return costs


def main() -> None:
    """Measure and print a table.

    Raises:
        RuntimeError: a step failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000, 100_000], help="objects below the prefix")
    parser.add_argument("--fetched", type=int, default=1000, help="objects that are not known yet")
    parser.add_argument("--step", choices=_STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step)
        return
    costs = {}
    for num_keys in options.keys:
        with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as folder:
            costs[num_keys] = measure(Path(folder), num_keys, options.fetched)
    title = f"Processor seconds (peak MiB), {options.fetched:,} objects fetched"
    table = Table("step", *(f"{num_keys:,} keys" for num_keys in options.keys), title=title)
    for step in _STEPS:
        table.add_row(step, *(f"{costs[keys][step][0]:.1f} ({costs[keys][step][1]:,.0f})" for keys in options.keys))
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    main()
