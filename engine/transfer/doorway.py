"""The port on which a decode engine takes data connections, whichever transport they are for.

A connection says its key first: 32 random bytes that only the engine to which they were offered knows. What follows
is between the transport's two sides.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable

from engine.errors import TransferError

logger = logging.getLogger(__name__)

KEY_BYTES = 32
_WELCOME = b"\1"
_KEY_TIMEOUT_S = 2.0
_STRANGERS = 256  # connections that have not said their key yet
_BACKLOG = 512

OnGuest = Callable[[socket.socket], None]


class Doorway:
    """Listens, and hands each connection to whoever knows its key."""

    def __init__(self) -> None:
        self.port = 0
        self._doors: dict[bytes, OnGuest] = {}
        self._strangers: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def open(self, host: str, port: int) -> None:
        """Listen on a port (0: any free one). Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        self._listener, self.port = listener, listener.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept(listener))

    def make_door(self, on_guest: OnGuest) -> bytes:
        """A new key; `on_guest` gets each connection that says it, non-blocking and the callee's to close."""
        key = secrets.token_bytes(KEY_BYTES)
        self._doors[key] = on_guest
        return key

    def close_door(self, key: bytes) -> None:
        """Nobody gets in with that key any more."""
        self._doors.pop(key, None)

    async def close(self) -> None:
        """Listen no more."""
        tasks = {*self._strangers, *([self._accepting] if self._accepting is not None else [])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._listener is not None:
            self._listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            if len(self._strangers) >= _STRANGERS:
                client.close()
                continue
            task = asyncio.create_task(self._greet(client))
            self._strangers.add(task)
            task.add_done_callback(self._strangers.discard)

    async def _greet(self, client: socket.socket) -> None:
        try:
            async with asyncio.timeout(_KEY_TIMEOUT_S):
                key = await receive_exactly(client, KEY_BYTES)
                on_guest = self._doors.get(key)
                if on_guest is not None:
                    await asyncio.get_running_loop().sock_sendall(client, _WELCOME)
        except (OSError, TransferError) as error:  # a TimeoutError is an OSError
            logger.debug("a data connection said no key: %s", error)
            client.close()
            return
        except BaseException:
            client.close()
            raise
        if on_guest is None or key not in self._doors:
            client.close()
        else:
            on_guest(client)


async def knock(host: str, port: int, key: bytes) -> socket.socket:
    """Prefill's part: a connection that has got in, non-blocking. TransferError, OSError; the caller has a deadline."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, key)
        await receive_exactly(sock, len(_WELCOME))
    except BaseException:
        sock.close()
        raise
    return sock


async def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """That many bytes. TransferError where the connection ends before them."""
    data = b""
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        if not piece:
            raise TransferError("it closed a data connection")
        data += piece
    return data
