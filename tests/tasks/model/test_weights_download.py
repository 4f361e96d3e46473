"""Weights by address: the right bytes once, or one sentence and nothing left behind. The server is on loopback."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.model import weights_download
from tasks.model.weights_download import WeightsError, WeightsUnavailable, fetch_file, fetch_weights
from tasks.params import load_params, validate_params
from tasks.runtime.errors import UserError

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
REPOSITORY = Path(__file__).parents[3]


class WeightsServer(ThreadingHTTPServer):
    """Serves CONTENT at /net.pth, and faults at other paths."""

    requests: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: WeightsServer

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path in ("/missing", "/busy"):
            self.send_error(404 if self.path == "/missing" else 503)
        elif self.path in ("/moved", "/away"):
            self.send_response(302)
            self.send_header("Location", "/net.pth" if self.path == "/moved" else "ftp://127.0.0.1/net.pth")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT) + (100 if self.path == "/torn" else 0)))
            self.end_headers()
            self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[WeightsServer]:
    with WeightsServer(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def fetch(server: WeightsServer, tmp_path: Path) -> Callable[..., Path]:
    def call(path: str = "/net.pth", digest: str = DIGEST, max_bytes: int = 1 << 30) -> Path:
        return fetch_file(server.url + path, digest, tmp_path / "cache", schemes=("http",), max_bytes=max_bytes)

    return call


def left_behind(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").glob("*") if path.suffix != ".lock"]


def test_a_file_is_fetched_once(server: WeightsServer, fetch: Callable[..., Path], tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        paths = {found.result() for found in [threads.submit(fetch) for _ in range(4)]}
    (path,) = paths
    assert path.name == f"{DIGEST}.pth"
    assert path.read_bytes() == CONTENT
    assert left_behind(tmp_path) == [path.name]
    assert server.requests == ["/net.pth"]


def test_a_damaged_file_is_fetched_again(server: WeightsServer, fetch: Callable[..., Path]) -> None:
    fetch().write_bytes(CONTENT[:-1])
    assert fetch().read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_forwarded_address_is_followed(fetch: Callable[..., Path]) -> None:
    assert fetch("/moved").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "problem", "error"),
    [
        ("/missing", "the server answers 404, expected 200", WeightsError),
        ("/busy", "the server answers 503, expected 200", WeightsUnavailable),
        ("/torn", "the answer is none", WeightsUnavailable),
        ("/away", "the address leads to ftp://, expected http", WeightsError),
    ],
)
def test_a_fault_of_the_server_is_one_line(
    fetch: Callable[..., Path], tmp_path: Path, path: str, problem: str, error: type[UserError]
) -> None:
    with pytest.raises(UserError) as caught:
        fetch(path)
    assert problem in str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == []


def test_other_bytes_are_not_kept(fetch: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"the file's SHA-256 is {DIGEST}, expected {'0' * 64}"):
        fetch(digest="0" * 64)
    with pytest.raises(WeightsError, match="larger than 1000 bytes"):
        fetch(max_bytes=1000)
    assert left_behind(tmp_path) == []


def test_no_server_is_worth_another_try(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="the answer is none") as caught:
        fetch_file("http://127.0.0.1:9/net.pth", DIGEST, tmp_path, schemes=("http",))
    assert caught.value.transient


def test_an_address_is_fetched_by_https_only(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(weights_download.CACHE_FOLDER_ENV, str(tmp_path / "cache"))
    host = server.url.removeprefix("http://")
    with pytest.raises(WeightsError, match="the address leads to http://"):
        fetch_file(f"{server.url}/net.pth", DIGEST, tmp_path / "cache", schemes=("https",))
    with pytest.raises(WeightsUnavailable):  # the server speaks no TLS
        fetch_weights(f"https://{host}/net.pth#sha256={DIGEST}")
    assert server.requests == []
    (tmp_path / "cache" / f"{DIGEST}.pth").write_bytes(CONTENT)
    assert fetch_weights(f"https://{host}/net.pth#sha256={DIGEST}").read_bytes() == CONTENT


def test_addresses_of_the_model_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setenv(weights_download.CACHE_FOLDER_ENV, str(tmp_path))
    monkeypatch.setattr(weights_download, "fetch_file", lambda *args, **options: calls.append((*args, options)))
    fetch_weights(f"detectron2://COCO-Detection/net/1/model.pkl#sha256={DIGEST}")
    url = "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/net/1/model.pkl"
    assert calls == [(url, DIGEST, tmp_path, {"schemes": ("https",)})]


@pytest.mark.parametrize(
    "address",
    [
        "https://host/net.pth",
        "detectron2://COCO-Detection/net.pkl",
        f"http://host/net.pth#sha256={DIGEST}",
        f"https://host/net.pth#sha256={DIGEST[:-1]}",
        f"https://host/net.pth#md5={DIGEST}",
        f"s3://bucket/net.pth#sha256={DIGEST}",
    ],
)
def test_an_address_without_its_digest_is_refused_when_parameters_are_read(address: str) -> None:
    content = load_params(REPOSITORY / "params.yaml").model_dump()
    content["model"]["pretrained_weights"] = address
    with pytest.raises(
        UserError, match=r"pretrained_weights is .* expected https:// or detectron2://, a path, and #sha256="
    ):
        validate_params(content, "params.yaml")
    with pytest.raises(WeightsError, match="expected https:// or detectron2://"):
        fetch_weights(address)
