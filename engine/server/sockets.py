"""The ports: bound before the model is loaded, so that a taken one is known at once."""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from engine.errors import EngineError

_BACKLOG = 1024
_CLOSE_TIMEOUT_S = 2.0  # for handlers that have yet to send what they have


def bind(host: str, port: int, flag: str) -> socket.socket:
    """Listen on a port (0: any free one). Raises EngineError naming the flag."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise EngineError(f"--host {host}: {error.strerror}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)  # at once: until then another process could bind the same port
    except OSError as error:
        sock.close()
        raise bind_error(error, host, port, flag) from None
    return sock


def port_of(sock: socket.socket) -> int:
    """Return the port that a socket is bound to."""
    port: int = sock.getsockname()[1]
    return port


def bind_error(error: OSError, host: str, port: int, flag: str) -> EngineError:
    """Say in one line why a port could not be had."""
    if error.errno == errno.EADDRINUSE:
        return EngineError(f"{flag} {port}: the port is taken on {host}; choose another, or 0 for any free one")
    if error.errno == errno.EADDRNOTAVAIL:
        return EngineError(f"--host {host} is not an address of this machine")
    return EngineError(f"{flag} {port}: cannot listen on {host}: {error.strerror}")


@asynccontextmanager
async def serving(app: web.Application, sock: socket.socket) -> AsyncIterator[None]:
    """Serve an application on a listening socket inside the block. A client that leaves cancels its handler."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_CLOSE_TIMEOUT_S)
    await runner.setup()
    try:
        await web.SockSite(runner, sock, backlog=_BACKLOG).start()
        yield
    finally:
        await runner.cleanup()
