"""What all clients need: an answer in pieces, and waits that name what they waited for."""

import asyncio
from typing import TypeVar

from benchmarks.router import messages

T = TypeVar("T")

ANSWER_TIMEOUT_S = 10.0
OK = b"HTTP/1.1 200 "
LAST_CHUNK = messages.DONE + messages.STREAM_END


class ClientError(Exception):
    """An answer was wrong, or did not come."""


class Answer:
    """Collects one answer, and knows when it is whole."""

    __slots__ = ("_whole", "data")

    def __init__(self) -> None:
        self.data = bytearray()
        self._whole = -1  # bytes; 0: until the last chunk; -1: not known yet

    def feed(self, data: bytes) -> bool:
        """Add bytes; whether the answer is whole now."""
        self.data += data
        if self._whole < 0:
            self._whole = _whole_size(self.data)
        if self._whole > 0:
            return len(self.data) >= self._whole
        return self._whole == 0 and self.data.endswith(messages.STREAM_END)


def _whole_size(data: bytearray) -> int:
    """Bytes of head and body; chunked: 0; not known yet: -1."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return -1
    head = data[: end + 2].lower()
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        return 0
    return end + 4 + int(head[start + 17 : head.find(b"\r\n", start + 2)])


async def within(awaitable: "asyncio.Future[T]", seconds: float, what: str) -> T:
    """Wait for something; ClientError after `seconds`."""
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except TimeoutError:
        raise ClientError(f"waited {seconds:.0f} s for {what}") from None


def quantile(ordered: list[float], share: float) -> float:
    """The value below which `share` of all lie; of none: not a number."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
