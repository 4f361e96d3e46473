"""Fetch a weights file that an address and its SHA-256 name, once; nothing but the bytes that were meant is kept.

The address is ``https://HOST/PATH#sha256=DIGEST``, or ``detectron2://PATH#sha256=DIGEST`` for Detectron2's model zoo.
"""

import hashlib
import logging
import os
import time
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

import httpx
from filelock import FileLock

from tasks.params.training import WEIGHTS_ADDRESS
from tasks.runtime.errors import EXIT_UNREACHABLE, UserError
from tasks.storage import files

log = logging.getLogger(__name__)
CACHE_FOLDER_ENV = "GLEANER_WEIGHTS_CACHE"
"""Environment variable: folder of downloaded weights; else ``gleaner/weights`` in the user's cache folder."""
_ZOO_URL = "https://dl.fbaipublicfiles.com/detectron2/"
_MAX_BYTES = 4 << 30
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S, _TOTAL_TIMEOUT_S = 10.0, 60.0, 3600.0
_MAX_REDIRECTS = 5
_CHUNK_BYTES = 1 << 20
_FIX = "Correct the address, or fetch the file by hand and give its path."


class WeightsError(UserError):
    """The address gives no file with the stated digest."""


class WeightsUnavailable(WeightsError):
    """The server gives no answer, or reports a temporary error."""

    exit_code = EXIT_UNREACHABLE
    transient = True


def is_weights_address(text: str) -> bool:
    """Return whether ``model.pretrained_weights`` names a file to fetch."""
    return "://" in text


def fetch_weights(address: str) -> Path:
    """Return the local file of an address; it is fetched where it is not in the cache.

    Raises:
        WeightsUnavailable: the server gives no answer.
        WeightsError: the address is malformed, or its file is missing, too large or not the one with that digest.
    """
    matched = WEIGHTS_ADDRESS.fullmatch(address)
    if matched is None:
        raise _error(address, "expected https:// or detectron2://, a path, and #sha256= with 64 hex digits")
    scheme, path, sha256 = matched.group("scheme", "path", "sha256")
    url = _ZOO_URL + path if scheme == "detectron2" else f"{scheme}://{path}"
    return fetch_file(url, sha256, cache_folder(), schemes=("https",))


def cache_folder() -> Path:
    """Return the folder of downloaded weights; it may be deleted at any time."""
    named = os.environ.get(CACHE_FOLDER_ENV)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gleaner" / "weights"


def fetch_file(url: str, sha256: str, folder: Path, *, schemes: Collection[str], max_bytes: int = _MAX_BYTES) -> Path:
    """Return the file with this digest in ``folder``; fetch it if it is not there, or is damaged.

    Args:
        url: where it is.
        sha256: of its content, 64 hex digits.
        folder: shared by whoever likes; one process at a time fetches a file.
        schemes: of ``url`` and of every address it is forwarded to.
        max_bytes: larger files are refused.

    Raises:
        WeightsUnavailable: the server gives no answer.
        WeightsError: the file is missing, too large or another one.
    """
    path = folder / f"{sha256}{PurePosixPath(urlsplit(url).path).suffix}"
    if _is_intact(path, sha256):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{sha256}.lock"):
            if not _is_intact(path, sha256):  # another process may just have fetched it
                _download(url, sha256, path, schemes, max_bytes)
    except httpx.TooManyRedirects:
        raise WeightsError(url, f"the address is forwarded more than {_MAX_REDIRECTS} times, expected a file") from None
    except httpx.TransportError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsUnavailable(url, f"the answer is none ({reason}), expected a weights file", _FIX) from None
    except OSError as error:
        raise WeightsError(folder, f"the folder is not writable ({error.strerror}), expected a cache folder") from None
    return path


def _is_intact(path: Path, sha256: str) -> bool:
    return path.is_file() and files.sha256_file(path) == sha256


def _download(url: str, sha256: str, path: Path, schemes: Collection[str], max_bytes: int) -> None:
    def check_scheme(request: httpx.Request) -> None:
        if request.url.scheme not in schemes:
            raise WeightsError(url, f"the address leads to {request.url.scheme}://, expected {' or '.join(schemes)}")

    log.info("fetching %s", url)
    timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    with (
        httpx.Client(
            timeout=timeout,
            follow_redirects=True,
            max_redirects=_MAX_REDIRECTS,
            event_hooks={"request": [check_scheme]},
        ) as client,
        client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
    ):
        _require_success(url, response)
        with files.atomic_write(path) as temporary:
            with temporary.open("wb") as stream:
                found = _copy(url, response, stream, max_bytes)
            if found != sha256:
                raise WeightsError(url, f"the file's SHA-256 is {found}, expected {sha256}", _FIX)


def _require_success(url: str, response: httpx.Response) -> None:
    if response.is_success:
        return
    problem = f"the server answers {response.status_code}, expected 200"
    if response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise WeightsUnavailable(url, problem, _FIX)
    raise WeightsError(url, problem, _FIX)


def _copy(url: str, response: httpx.Response, stream: IO[bytes], max_bytes: int) -> str:
    """Copy the body and return its SHA-256."""
    digest, num_bytes, started_s = hashlib.sha256(), 0, time.monotonic()
    for chunk in response.iter_raw(_CHUNK_BYTES):
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise WeightsError(url, f"the file is larger than {max_bytes} bytes, expected at most that", _FIX)
        if time.monotonic() - started_s > _TOTAL_TIMEOUT_S:
            raise WeightsUnavailable(url, f"the file took more than {_TOTAL_TIMEOUT_S:g} s, expected it sooner", _FIX)
        digest.update(chunk)
        stream.write(chunk)
    return digest.hexdigest()


def _error(address: str, expected: str) -> WeightsError:
    return WeightsError("params.yaml", f"model.pretrained_weights is {address!r}, {expected}")
