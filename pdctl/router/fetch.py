"""A whole request to an engine from the router itself: health, abort."""

import asyncio
from typing import NamedTuple

from pdctl.router.instance import Instance
from pdctl.router.messages import Failure, Head

_MAX_ANSWER = 1024 * 1024


class Answer(NamedTuple):
    """An engine's whole answer."""

    status: int
    body: bytes


class FetchError(Exception):
    """There is no answer; `unreachable` if there was not even a connection."""

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


async def fetch(
    instance: Instance, method: bytes, path: bytes, *, headers: bytes = b"", body: bytes = b"", timeout: float
) -> Answer:
    """Ask an engine and wait for its answer; FetchError says what went wrong."""
    collector = _Collector()
    head = instance.request_head(method, path, headers, len(body))
    call = instance.pool.send((head, body), collector)
    try:
        async with asyncio.timeout(timeout):
            return await collector.answer
    except TimeoutError:
        raise FetchError(f"no answer to {path.decode()} within {timeout:g} s") from None
    finally:
        call.cancel()


class _Collector:
    """Gathers an answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._body = b""

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        if self.answer.done():
            return
        if head is not None:
            self._status = head.status
        self._body += body
        if len(self._body) > _MAX_ANSWER:
            self.answer.set_exception(FetchError(f"the answer is larger than {_MAX_ANSWER} bytes"))
        elif end:
            self.answer.set_result(Answer(self._status, self._body))

    def failed(self, failure: Failure) -> None:
        if not self.answer.done():
            self.answer.set_exception(FetchError(failure.reason, unreachable=failure.kind == "connect"))
