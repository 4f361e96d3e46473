"""Ports: free ones for tests, and who holds one that should be free."""

import socket

import psutil

from infra.services.service import LocalServiceError

LOOPBACK = "127.0.0.1"
_MAX_ATTEMPTS = 200
_PORT_RANGE = range(20_000, 32_000)  # Linux hands out 32768 and above to clients: one of those may go any moment


def free_ports(count: int = 1) -> int:
    """First of ``count`` ports in a row that nobody holds now."""
    with socket.create_server((LOOPBACK, 0)) as any_port:
        start = int(any_port.getsockname()[1])  # somewhere else each time: tests run side by side
    for step in range(_MAX_ATTEMPTS):
        first = _PORT_RANGE[(start + step * count) % (len(_PORT_RANGE) - count)]
        if not any(is_port_taken(first + offset) for offset in range(count)):
            return first
    raise LocalServiceError("ports", f"free ports in a row are fewer than {count}, expected {count}")


def is_port_taken(port: int) -> bool:
    """Whether a server could not listen there."""
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError:
        return True
    return False


def require_ports_free(service: str, ports: tuple[int, ...]) -> None:
    """Refuse to start a service beside a stranger.

    Raises:
        LocalServiceError: names the port, and the program that holds it where the system tells.
    """
    for port in ports:
        if is_port_taken(port):
            fix = f"Stop it, or choose another: make services-up PORTS='{service}=12345'."
            raise LocalServiceError(service, f"port {port} is taken by {_port_owner(port)}, expected it free", fix)


def _port_owner(port: int) -> str:
    try:
        listening = [link for link in psutil.net_connections("tcp") if link.status == psutil.CONN_LISTEN]
        pids = [link.pid for link in listening if link.laddr.port == port and link.pid]
        return f"{psutil.Process(pids[0]).name()} (process {pids[0]})" if pids else "another program"
    except psutil.Error:
        return "another program"
