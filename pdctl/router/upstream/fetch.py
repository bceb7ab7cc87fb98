"""A whole request to an engine from the router itself: health, abort, metrics."""

import asyncio
from typing import NamedTuple

from pdctl.router.messages import Failure, Head
from pdctl.router.upstream.dechunker import Dechunker
from pdctl.router.upstream.pool import Call, Pool

_MAX_ANSWER = 16 * 1024 * 1024


class Answer(NamedTuple):
    """What an engine answered."""

    status: int
    body: bytes


class FetchError(Exception):
    """There is no answer; `unreachable` if there was not even a connection."""

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


async def fetch(
    pool: Pool, method: bytes, path: bytes, *, headers: bytes = b"", body: bytes = b"", timeout: float
) -> Answer:
    """Ask an engine and wait for the end of its answer. FetchError says what went wrong."""
    call = _Fetch(pool, pool.request(method, path, headers, body))
    pool.send(call)
    try:
        async with asyncio.timeout(timeout):
            return await call.answer
    except TimeoutError:
        raise FetchError(f"no answer to {path.decode()} within {timeout:g} s") from None
    finally:
        call.cancel()


class _Fetch(Call):
    """Waits for the end of an answer."""

    __slots__ = ("_body", "_dechunker", "_size", "_status", "answer")

    def __init__(self, pool: Pool, payload: bytes) -> None:
        super().__init__(pool, payload)
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._size = 0
        self._body: list[bytes] = []
        self._dechunker: Dechunker | None = None

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        """Collect the answer."""
        if self.answer.done():
            return
        if head is not None:
            self._status = head.status
            self._dechunker = Dechunker() if head.chunked else None
        self._size += len(body)
        if self._size > _MAX_ANSWER:
            self.answer.set_exception(FetchError(f"the answer is larger than {_MAX_ANSWER} bytes"))
            return
        self._body.append(body if self._dechunker is None else self._dechunker.feed(body))
        if end:
            self.answer.set_result(Answer(self._status, b"".join(self._body)))

    def failed(self, failure: Failure) -> None:
        """Report it to who waits."""
        if not self.answer.done():
            self.answer.set_exception(FetchError(failure.reason, unreachable=failure.kind == "connect"))
