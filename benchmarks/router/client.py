"""The closed loop: kept-alive connections as raw asyncio protocols, which check every answer. Runs in uvloop."""

import asyncio
import time
from array import array
from dataclasses import dataclass
from typing import cast

from benchmarks.router import messages
from benchmarks.router.answers import ANSWER_TIMEOUT_S, LAST_CHUNK, OK, Answer, ClientError, quantile, within

WARM_UP_S = 0.5


@dataclass(frozen=True)
class LoopResult:
    """Figures of a closed loop; latencies in milliseconds, until the end of the answer."""

    answers: int  # all of them, those while warming up included
    requests_per_s: float
    p50_ms: float
    p99_ms: float


class LoopConnection(asyncio.Protocol):
    """Sends the same request again and again, each when the answer before is whole."""

    __slots__ = ("_answer", "_loop", "_started", "_transport")
    _transport: asyncio.Transport

    def __init__(self, loop: "ClosedLoop") -> None:
        self._loop = loop
        self._answer: Answer | None = None  # what there is of it, if not all came at once

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Go on reading, and begin anew after the last byte."""
        answer = self._answer
        if answer is None:
            if self._loop.is_known(data):
                self._finish()
                return
            answer = self._answer = Answer()
        if not answer.feed(data):
            return
        problem = self._loop.problem(answer)
        if problem is None:
            self._finish()
        else:
            self._loop.fail(problem)

    def connection_lost(self, exception: Exception | None) -> None:
        """Called by the event loop; before the end of the time it is a failure."""
        if not self._loop.is_over(time.perf_counter()):
            begun = bytes(self._answer.data[:300]) if self._answer else b""
            self._loop.fail(f"the connection was closed: {exception}, after {begun!r}")
        self._loop.left()

    def _send(self) -> None:
        self._answer = None
        self._started = time.perf_counter()
        self._transport.write(self._loop.request)

    def _finish(self) -> None:
        now = time.perf_counter()
        if self._loop.add(now, now - self._started):
            self._send()
        else:
            self._transport.abort()


class ClosedLoop:
    """What the connections of a closed loop share."""

    def __init__(self, *, streaming: bool, connections: int, seconds: float) -> None:
        self.request = messages.chat_request(streaming=streaming)
        self.latencies = array("d")
        self.answers = 0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._problem = _stream_problem if streaming else _plain_problem
        self._known = b"\0"  # the last body that was checked; with it, an answer that is equal needs no other check
        self._open = connections
        self._begin = time.perf_counter() + WARM_UP_S
        self._end = self._begin + seconds

    def is_known(self, data: bytes | bytearray) -> bool:
        """Whether this is a whole answer, and with the last body that was checked."""
        return data.endswith(self._known) and data.startswith(OK)

    def problem(self, answer: Answer) -> str | None:
        """What is wrong with an answer."""
        if self.is_known(answer.data):
            return None
        problem = self._problem(answer.data)
        if problem is None:
            self._known = bytes(answer.data[answer.data.find(b"\r\n\r\n") :])
        return problem

    def add(self, now: float, latency: float) -> bool:
        """Count an answer; whether to go on."""
        self.answers += 1
        if self._begin <= now < self._end:
            self.latencies.append(latency)
        return now < self._end

    def is_over(self, now: float) -> bool:
        """Whether the time is over."""
        return now >= self._end

    def fail(self, problem: str) -> None:
        """End the loop with an error."""
        if not self.finished.done():
            self.finished.set_exception(ClientError(problem))

    def left(self) -> None:
        """Note that a connection has closed."""
        self._open -= 1
        if not self._open and not self.finished.done():
            self.finished.set_result(None)


async def closed_loop(port: int, *, streaming: bool, connections: int, seconds: float) -> LoopResult:
    """Keep `connections` requests in flight for `seconds`, after a short time to warm up."""
    shared = ClosedLoop(streaming=streaming, connections=connections, seconds=seconds)
    for _ in range(connections):
        await asyncio.get_running_loop().create_connection(lambda: LoopConnection(shared), "127.0.0.1", port)
    await within(shared.finished, WARM_UP_S + seconds + ANSWER_TIMEOUT_S, "the last answers of the closed loop")
    latencies = sorted(shared.latencies)
    return LoopResult(
        answers=shared.answers,
        requests_per_s=len(latencies) / seconds,
        p50_ms=1e3 * quantile(latencies, 0.5),
        p99_ms=1e3 * quantile(latencies, 0.99),
    )


def _stream_problem(data: bytearray) -> str | None:
    if data.startswith(OK) and data.count(b"data: ") == messages.CHUNKS + 1 and data.endswith(LAST_CHUNK):
        return None
    return f"not a whole stream: {bytes(data[:300])!r} ... {bytes(data[-100:])!r}"


def _plain_problem(data: bytearray) -> str | None:
    if data.startswith(OK) and b'"finish_reason":"stop"' in data:
        return None
    return f"not a whole answer: {bytes(data[:300])!r}"
