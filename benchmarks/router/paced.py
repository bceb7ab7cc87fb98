"""Paced streams: how long each chunk was under way. Runs in uvloop."""

import asyncio
import random
import re
import time
from array import array
from dataclasses import dataclass
from typing import cast

from benchmarks.router import messages
from benchmarks.router.answers import ANSWER_TIMEOUT_S, LAST_CHUNK, OK, ClientError, quantile, within

_PACED_CHUNK = re.compile(rb'"content":"(\d+)@(\d+)"')


@dataclass(frozen=True)
class PacedResult:
    """Figures of paced streams: how long chunks were under way, and how many never came."""

    p50_ms: float
    p99_ms: float
    chunks: int
    lost: int


class PacedConnection(asyncio.Protocol):
    """One paced stream; notes how long each chunk was under way."""

    __slots__ = ("_delays", "_held", "_next", "_request", "_transport", "done", "lost")

    _transport: asyncio.Transport

    def __init__(self, request: bytes, delays: "array[float]") -> None:
        self._request = request
        self._delays = delays
        self._held = b""
        self._next = 0  # chunk
        self.lost = 0
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()  # how many chunks came

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note every chunk that is there in whole; a head, or half a chunk, is held."""
        now = time.monotonic_ns()
        data = self._held + data
        end = 0
        for match in _PACED_CHUNK.finditer(data):
            number = int(match[1])
            self.lost += abs(number - self._next)  # a chunk out of turn counts as well
            self._next = number + 1
            self._delays.append((now - int(match[2])) / 1e6)
            end = match.end()
        self._held = data[end:]
        if not self._next and self._held.startswith(b"HTTP/1.1 ") and not self._held.startswith(OK):
            self._end(ClientError(f"not a stream: {self._held[:300]!r}"))
        elif self._held.endswith(messages.STREAM_END):
            whole = self._held.endswith(LAST_CHUNK)
            self._end(None if whole else ClientError(f"a paced stream ended with {self._held[-100:]!r}"))

    def connection_lost(self, exception: Exception | None) -> None:
        """Called by the event loop."""
        self._end(ClientError(f"a paced stream broke after {self._next} chunks: {exception}"))

    def _end(self, problem: ClientError | None) -> None:
        if self.done.done():
            return
        self._transport.abort()
        if problem is None:
            self.done.set_result(self._next)
        else:
            self.done.set_exception(problem)


async def paced_streams(port: int, *, streams: int, seconds: float) -> PacedResult:
    """Read `streams` streams of a chunk every 20 ms, begun at random times within a second: they are not in step."""
    chunks = max(1, round(seconds / messages.PACE_S))
    request = messages.chat_request(streaming=True, paced_chunks=chunks)
    delays = array("d")
    loop = asyncio.get_running_loop()
    begin = loop.time()
    connections: list[PacedConnection] = []
    for offset in sorted(random.Random(0).uniform(0.0, 1.0) for _ in range(streams)):
        await asyncio.sleep(begin + offset - loop.time())
        _, connection = await loop.create_connection(lambda: PacedConnection(request, delays), "127.0.0.1", port)
        connections.append(connection)
    everything = asyncio.gather(*(connection.done for connection in connections))
    counts = await within(everything, seconds + ANSWER_TIMEOUT_S, "the end of the paced streams")
    lost = sum(connection.lost + chunks - count for connection, count in zip(connections, counts, strict=True))
    ordered = sorted(delays)
    return PacedResult(quantile(ordered, 0.5), quantile(ordered, 0.99), len(ordered), lost)
