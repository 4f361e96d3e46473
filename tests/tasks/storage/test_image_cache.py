"""Images from a real S3 server through the cache: checked, bounded, shared, and never half."""

import hashlib
import multiprocessing
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.data.paths import image_id_from_sha256
from tasks.storage import image_cache, s3
from tasks.storage.image_cache import ChangedObjectError, ImageCache
from tasks.storage.s3 import MissingObjectError, ObjectStoreUnavailable, write_object
from tests.services import S3Server

pytestmark = pytest.mark.integration
KIB = 1 << 10


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    s3_server.set_environment(monkeypatch)
    monkeypatch.setattr(image_cache, "_INITIAL_BACKOFF_S", 0.01)
    return f"s3://{s3_server.new_bucket()}"


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache", 100 * KIB, num_workers=4)


def put_image(uri: str, content: bytes) -> str:
    write_object(uri, content)
    return image_id_from_sha256(hashlib.sha256(content).hexdigest())


def cached_files(cache: ImageCache) -> dict[str, int]:
    return {
        path.name: path.stat().st_size for path in cache.folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


def test_an_image_is_fetched_once_and_read_from_the_disk_then(
    bucket: str, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = put_image(f"{bucket}/a b/ü.png", b"pixels")
    assert cache.open(f"{bucket}/a b/ü.png", image_id, Path.read_bytes) == b"pixels"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # nobody is there
    assert cache.open(f"{bucket}/a b/ü.png", image_id, Path.read_bytes) == b"pixels"


def test_the_folder_may_be_deleted_at_any_time(bucket: str, cache: ImageCache) -> None:
    ids = [put_image(f"{bucket}/{n}", bytes([n])) for n in range(2)]
    for n, image_id in enumerate(ids):
        cache.open(f"{bucket}/{n}", image_id, Path.read_bytes)
        shutil.rmtree(cache.folder)
    assert cache.open(f"{bucket}/0", ids[0], Path.read_bytes) == bytes([0])


def test_other_bytes_than_the_id_says_are_refused_and_leave_nothing(bucket: str, cache: ImageCache) -> None:
    image_id = put_image(f"{bucket}/a.png", b"first")
    write_object(f"{bucket}/a.png", b"second")
    with pytest.raises(ChangedObjectError, match="gleaner pool sync"):
        cache.open(f"{bucket}/a.png", image_id, Path.read_bytes)
    with pytest.raises(MissingObjectError, match="the object is missing"):
        cache.open(f"{bucket}/none.png", image_id, Path.read_bytes)
    assert cached_files(cache) == {}


def test_the_cache_stays_below_its_limit_and_keeps_what_was_used_last(bucket: str, cache: ImageCache) -> None:
    ids = [put_image(f"{bucket}/{n}", bytes([n]) * 10 * KIB) for n in range(30)]
    for n, image_id in enumerate(ids):
        cache.open(f"{bucket}/{n}", image_id, Path.stat)
        cache.open(f"{bucket}/0", ids[0], Path.stat)
        assert sum(cached_files(cache).values()) <= 110 * KIB
        time.sleep(0.002)
    kept = cached_files(cache)
    assert ids[0] in kept
    assert ids[29] in kept
    assert ids[1] not in kept


def test_an_image_that_another_process_threw_away_is_fetched_again(bucket: str, cache: ImageCache) -> None:
    image_id = put_image(f"{bucket}/a", b"pixels")
    seen = []

    def vanish_once(path: Path) -> bytes:
        seen.append(path)
        if len(seen) == 1:
            path.unlink()
        return path.read_bytes()

    assert cache.open(f"{bucket}/a", image_id, vanish_once) == b"pixels"


def test_remnants_of_killed_processes_are_swept_and_never_trusted(
    bucket: str, cache: ImageCache, tmp_path: Path
) -> None:
    image_id = put_image(f"{bucket}/a", b"pixels")
    cache.folder.mkdir()
    old, young = cache.folder / "1-a.part", cache.folder / "2-b.part"
    for path in (old, young):
        path.write_bytes(b"pix")
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    empty = cache.folder / image_id[:2] / image_id
    empty.parent.mkdir()
    empty.touch()  # what a power cut may leave
    other = put_image(f"{bucket}/b", b"other")
    cache.open(f"{bucket}/b", other, Path.read_bytes)
    assert not old.exists()
    assert young.exists()
    assert cache.open(f"{bucket}/a", image_id, Path.read_bytes) == b"pixels"


def test_many_threads_fetch_an_image_once_and_prefetching_helps(
    bucket: str, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    original = s3.fetch_object

    def counted(uri: str, into: Any) -> str:
        fetched.append(uri)
        time.sleep(0.05)
        return original(uri, into)

    monkeypatch.setattr(image_cache, "fetch_object", counted)
    ids = {f"{bucket}/{n}": put_image(f"{bucket}/{n}", f"image {n}".encode()) for n in range(8)}
    cache.prefetch(ids.items())
    threads = [
        threading.Thread(target=cache.open, args=(uri, i, Path.read_bytes)) for uri, i in ids.items() for _ in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fetched) == sorted(ids)


def _read_all(folder: Path, images: dict[str, str], error_file: Path) -> None:
    try:
        cache = ImageCache(folder, 40 * KIB, num_workers=2)
        for _ in range(3):
            for uri, image_id in images.items():
                content = cache.open(uri, image_id, Path.read_bytes)
                assert image_id_from_sha256(hashlib.sha256(content).hexdigest()) == image_id
    except BaseException:
        error_file.write_text(traceback.format_exc())  # a forked process's last words are lost with pytest's buffers
    os._exit(0)  # libraries that other tests imported have their own ideas about the end of a fork


def test_several_processes_share_one_small_folder(bucket: str, tmp_path: Path) -> None:
    images = {f"{bucket}/{n}": put_image(f"{bucket}/{n}", bytes([n]) * 8 * KIB) for n in range(12)}
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_read_all, args=(tmp_path / "shared", images, tmp_path / f"failure-{n}"))
        for n in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [path.read_text() for path in tmp_path.glob("failure-*")] == []
    assert [worker.exitcode for worker in workers] == [0, 0, 0]


@pytest.mark.parametrize("failure", ["away twice", "cut in the middle", "away for good", "disk full"])
def test_outages_are_tried_again_and_then_named(
    failure: str, bucket: str, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = put_image(f"{bucket}/a", b"pixels" * 1000)
    original, calls = s3.fetch_object, 0

    def fetch(uri: str, into: Any) -> str:
        nonlocal calls
        calls += 1
        if failure == "disk full":
            raise OSError(28, "No space left on device")
        if failure == "away for good" or calls <= 2:
            if failure == "cut in the middle":
                into.write(b"pixelspix")
            raise ObjectStoreUnavailable(uri, "the object store is out of reach (Test), expected an answer")
        return original(uri, into)

    monkeypatch.setattr(image_cache, "fetch_object", fetch)
    if failure == "disk full":
        with pytest.raises(OSError, match="No space"):
            cache.open(f"{bucket}/a", image_id, Path.read_bytes)
    elif failure == "away for good":
        with pytest.raises(ObjectStoreUnavailable, match="out of reach"):
            cache.open(f"{bucket}/a", image_id, Path.read_bytes)
    else:
        assert cache.open(f"{bucket}/a", image_id, Path.read_bytes) == b"pixels" * 1000
        return
    assert cached_files(cache) == {}


@pytest.fixture
def broken_server() -> Iterator[Callable[[bytes], str]]:
    """A server that answers every connection with the given bytes and hangs up."""
    import socket

    server = socket.create_server(("127.0.0.1", 0))
    answer = b""

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    def start(content: bytes) -> str:
        nonlocal answer
        answer = content
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield start
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf of it",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
)
def test_half_answers_and_server_errors_are_outages(
    answer: bytes,
    bucket: str,
    cache: ImageCache,
    broken_server: Callable[[bytes], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", broken_server(answer))
    monkeypatch.setattr(s3, "_MAX_ATTEMPTS", 1)
    monkeypatch.setattr(image_cache, "_MAX_ATTEMPTS", 2)
    with pytest.raises(ObjectStoreUnavailable) as caught:
        cache.open(f"{bucket}/a", "0" * 16, Path.read_bytes)
    assert caught.value.transient
    assert caught.value.exit_code == 6
    assert cached_files(cache) == {}
