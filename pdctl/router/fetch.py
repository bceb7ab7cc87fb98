"""A whole request to an engine from the router itself: health, abort."""

import asyncio

from pdctl.router.instance import Instance
from pdctl.router.messages import Failure, Head

_MAX_ANSWER = 1024 * 1024


class FetchError(Exception):
    """There is no answer; `unreachable` if there was not even a connection."""

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


async def fetch(
    instance: Instance, method: bytes, path: bytes, *, headers: bytes = b"", body: bytes = b"", timeout: float
) -> int:
    """Ask an engine and wait for the end of its answer; return the status. FetchError says what went wrong."""
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
    """Waits for the end of an answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._size = 0

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        if self.answer.done():
            return
        if head is not None:
            self._status = head.status
        self._size += len(body)
        if self._size > _MAX_ANSWER:
            self.answer.set_exception(FetchError(f"the answer is larger than {_MAX_ANSWER} bytes"))
        elif end:
            self.answer.set_result(self._status)

    def failed(self, failure: Failure) -> None:
        if not self.answer.done():
            self.answer.set_exception(FetchError(failure.reason, unreachable=failure.kind == "connect"))
