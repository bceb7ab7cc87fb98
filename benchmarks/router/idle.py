"""Idle connections: opened, used once, and left open. Runs in uvloop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from benchmarks.router import messages
from benchmarks.router.answers import ANSWER_TIMEOUT_S, OK, Answer, ClientError, within

IDLE_OPENING = 100  # connections that are opened at the same time


class IdleConnection(asyncio.Protocol):
    """Sends one GET, then stays open."""

    __slots__ = ("_answer", "_request", "answered", "is_open", "transport")
    transport: asyncio.Transport

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._answer = Answer()
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Wait for the whole answer."""
        if not self._answer.feed(data) or self.answered.done():
            return
        if self._answer.data.startswith(OK):
            self.answered.set_result(None)
        else:
            self.answered.set_exception(ClientError(f"not 200: {bytes(self._answer.data[:300])!r}"))

    def connection_lost(self, exception: Exception | None) -> None:
        """Called by the event loop."""
        self.is_open = False
        if not self.answered.done():
            self.answered.set_exception(ClientError(f"an idle connection was closed: {exception}"))


@asynccontextmanager
async def idle_connections(port: int, path: str, count: int) -> AsyncIterator[None]:
    """Hold `count` open connections, each of which has had one answer to a GET."""
    request = messages.get_request(path)
    connections: list[IdleConnection] = []
    while len(connections) < count:
        number = min(IDLE_OPENING, count - len(connections))
        batch = asyncio.gather(*[_open_idle(port, request) for _ in range(number)])
        opened = await within(batch, ANSWER_TIMEOUT_S, f"{number} idle connections")
        connections += opened
    try:
        yield
        closed = sum(not connection.is_open for connection in connections)
        if closed:
            raise ClientError(f"{closed} of {count} idle connections were closed")
    finally:
        for connection in connections:
            connection.transport.abort()


async def _open_idle(port: int, request: bytes) -> IdleConnection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: IdleConnection(request), "127.0.0.1", port)
    await connection.answered
    return connection
