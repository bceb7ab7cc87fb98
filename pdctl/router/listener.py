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
    sock = _bind(host, port)  # alone: an address that others share already would be shared with us, too
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # nobody else may bind what does not listen
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


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
        pids = sorted({c.pid for c in listening if c.pid is not None and c.laddr[1:2] == (port,)})
        if not pids:
            return ""
        process = _first(psutil.Process(pids[0]))
        return f" by {process.name()} (pid {process.pid})"
    except (psutil.Error, OSError):
        return ""  # the process belongs to another user, or is gone


def _first(process: psutil.Process) -> psutil.Process:
    """The process that has started this one as one of several workers, else itself: ending a worker frees no port."""
    parent = process.parent()
    return parent if parent is not None and parent.cmdline() == process.cmdline() else process
