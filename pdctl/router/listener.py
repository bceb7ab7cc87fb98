"""Binds the router's port, or says who has it."""

import errno
import socket

import psutil

from pdctl.errors import PdctlError, PlanError


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. PlanError names a taken port and, where it can be seen, the process that has it."""
    sock = _bind(host, port)
    sock.listen()
    return sock


def reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps an address for those of `share`, and does not listen. Errors as of `bind`."""
    with bind(host, port) as sock:  # alone: an address that is shared already would be shared with us, too
        port = sock.getsockname()[1]
    return share(host, port)


def share(host: str, port: int) -> socket.socket:
    """A socket bound to an address that others share; the kernel spreads connections over those that listen."""
    return _bind(host, port, shared=True)


def _bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise PdctlError(f"--host {host}: {error.strerror}") from None
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PlanError(f"port {port} on {host} is taken{_by_whom(port)}: choose another with --port") from None
        raise PdctlError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return sock


def _by_whom(port: int) -> str:
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        pids = {c.pid for c in listening if c.pid is not None and c.laddr[1:2] == (port,)}
        return "".join(f" by {psutil.Process(pid).name()} (pid {pid})" for pid in sorted(pids)[:1])
    except (psutil.Error, OSError):
        return ""  # the process belongs to another user, or is gone
