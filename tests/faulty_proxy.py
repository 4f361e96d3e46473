"""A TCP proxy before a real server that fails in the ways networks and servers fail."""

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["none", "refused", "reset", "500", "hang", "slow", "cut"]
_RESET = struct.pack("ii", 1, 0)
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\nsick"
_SLOW_S = 0.05
_CHUNK_BYTES = 1 << 16


class FaultyProxy:
    """Listens on a port of its own and passes everything on, but for the fault it is told to show."""

    def __init__(self, server_url: str) -> None:
        """Take the URL of the real server."""
        address = urlsplit(server_url)
        assert address.port is not None
        self._server = (address.hostname or "127.0.0.1", address.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self._stop_event = threading.Event()
        self._fault: Fault = "none"
        self._remaining = 0
        self._cut_after_bytes = 0
        self.num_faults = 0
        """Connections that met the fault."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._port}"

    def inject(
        self, fault: Fault, connections: int = 1_000_000, cut_after_bytes: int = 0, recover_after_s: float | None = None
    ) -> None:
        """Treat the next connections so; a cut leaves alone those that send less than ``cut_after_bytes``."""
        self.num_faults, self._remaining, self._cut_after_bytes = 0, connections, cut_after_bytes
        if fault == "refused":
            self._listener.close()
        elif self._fault == "refused":
            self._listener = socket.create_server(("127.0.0.1", self._port))
        self._fault = fault
        if recover_after_s is not None:
            timer = threading.Timer(recover_after_s, self.inject, ["none"])
            timer.daemon = True
            timer.start()

    def close(self) -> None:
        """Be gone."""
        self._stop_event.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._stop_event.is_set():
            listener = self._listener
            try:
                if not select.select([listener], [], [], 0.05)[0]:
                    continue
                client, _ = listener.accept()
            except (OSError, ValueError):  # closed: connections are refused
                time.sleep(0.02)
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        fault = self._fault if self._remaining > 0 else "none"
        with client, suppress(OSError):
            if fault in ("reset", "500", "hang"):
                self._count_fault()
                self._fail(client, fault)
            else:
                with socket.create_connection(self._server) as server:
                    self._forward(client, server, fault)

    def _fail(self, client: socket.socket, fault: Fault) -> None:
        if fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif fault == "500":
            client.recv(_CHUNK_BYTES)
            client.sendall(_ERROR)
        else:
            while client.recv(_CHUNK_BYTES):  # until the client loses patience
                pass

    def _forward(self, client: socket.socket, server: socket.socket, fault: Fault) -> None:
        sent_bytes = 0
        if fault == "slow":
            self._count_fault()
        while True:
            ready = select.select([client, server], [], [], 60)[0]
            for source, target in ((client, server), (server, client)):
                if source not in ready:
                    continue
                data = source.recv(_CHUNK_BYTES)
                if not data:
                    return
                if fault == "slow":
                    time.sleep(_SLOW_S)
                sent_bytes += len(data) if source is client else 0
                if fault == "cut" and sent_bytes > self._cut_after_bytes and self._remaining > 0:
                    self._count_fault()
                    target.sendall(data[: len(data) // 2])  # the server has half of it
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return
                target.sendall(data)

    def _count_fault(self) -> None:
        self.num_faults += 1
        self._remaining -= 1


@contextmanager
def faulty_proxy(server_url: str) -> Iterator[FaultyProxy]:
    """A proxy for one test."""
    proxy = FaultyProxy(server_url)
    try:
        yield proxy
    finally:
        proxy.close()
