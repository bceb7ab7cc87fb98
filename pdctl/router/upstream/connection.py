"""One kept-alive connection to an engine: finds where its answers end, and reports each read as it came."""

import asyncio
import socket
from math import inf
from typing import TYPE_CHECKING, cast

import httptools

from pdctl.router.messages import Failure, Head
from pdctl.router.upstream.heads import HTTP, NOT_HTTP, read_head

if TYPE_CHECKING:
    from pdctl.router.upstream.pool import Call, Pool

_HEAD_END = b"\r\n\r\n"
_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"  # what a parser of chunks is told first


class EngineConnection(asyncio.Protocol):
    """Carries one call at a time; between two it is its pool's.

    A body is reported in the framing it came in.
    """

    __slots__ = (
        "_chunks",
        "_complete",
        "_excess",
        "_head",
        "_interim",
        "_paused",
        "_pool",
        "_remaining",
        "_transport",
        "_unread",
        "call",
        "idle_since",
    )
    _transport: asyncio.Transport
    _head: Head | None
    _remaining: int  # bytes of a body with a length
    _unread: bytes  # an incomplete head
    _interim: bool  # an interim answer (1xx) has come
    _complete: bool  # the last chunk has come
    _excess: bool  # and something after it

    def __init__(self, pool: "Pool", call: "Call") -> None:
        self.call: Call | None = call
        self.idle_since = inf  # a time while it is idle
        self._pool = pool
        self._chunks: httptools.HttpResponseParser | None = None  # made for the first chunked body
        self._paused = False
        self._reset()

    # What the pool and the call use.

    @property
    def usable(self) -> bool:
        """Whether a call may be sent."""
        return not self._transport.is_closing()

    def begin(self, call: "Call") -> None:
        """Send a call's request."""
        self.call = call
        call.bind(self)
        self._reset()
        self._transport.write(call.payload)

    def drop(self) -> None:
        """Close at once, whatever is under way."""
        self.call = None
        self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    # What the event loop reports.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the call that this connection was opened for."""
        self._transport = cast(asyncio.Transport, transport)
        if self.call is None or self.call.over:  # cancelled meanwhile: uvloop may not tell of this connection's end
            self.drop()
            return
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pool.open.add(self)
        self.begin(self.call)

    def data_received(self, data: bytes) -> None:
        """Find out whether the answer ends with this read, and pass it on."""
        call = self.call
        if call is None:
            self.drop()  # nothing was asked
            return
        head, new = self._head, None
        if head is None:
            try:
                head, data = self._read_head(data)
            except ValueError as error:
                self._fail(call, str(error))
                return
            if head is None:
                return
            self._head = new = head
        if head.length is not None:
            end, clean = self._measure(len(data))
            if not clean:
                data = data[: len(data) + self._remaining]
        elif head.chunked:
            end, clean = self._find_end(data)
            if not clean:  # where in these bytes the answer ends is not known
                self._fail(call, "not valid HTTP chunks")
                return
        else:
            end = clean = False
        if not end:
            if new is not None or data:
                call.received(new, data, False)
            return
        self._release(reusable=clean and head.keep_alive)
        call.finished(new, data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report what the end of the connection means for the call."""
        self._pool.forget(self)
        call, self.call = self.call, None
        if call is None:
            return
        head = self._head
        if exc is None and head is not None and head.length is None and not head.chunked:
            call.finished(None, b"")  # a body without a length ends with its connection
            return
        reason = "the connection was closed" if exc is None else f"the connection was lost: {exc}"
        when = "before the answer" if head is None else "in the middle of the answer"
        answered = head is not None or bool(self._unread) or self._interim
        call.lost(Failure("dropped", f"{reason} {when}"), answered=answered)

    # What the parser of chunks reports.

    def on_message_begin(self) -> None:
        """Called by the parser at a message's first byte."""
        self._excess = self._complete

    def on_message_complete(self) -> None:
        """Called by the parser after the last chunk."""
        self._complete = True

    def _reset(self) -> None:
        self._head = None
        self._unread = b""
        self._remaining = -1
        self._interim = self._complete = self._excess = False

    def _read_head(self, data: bytes) -> tuple[Head | None, bytes]:
        """The head, when it is whole, and what follows it. ValueError if it is invalid or too large."""
        if self._unread:
            data, self._unread = self._unread + data, b""
        while True:
            end = data.find(_HEAD_END) + 4
            if end < 4:
                break
            head = read_head(data[:end])
            data = data[end:]
            if head.status >= 200:
                return head, data
            self._interim = True
        if len(data) > self._pool.limits.head_bytes:
            raise ValueError(f"the head of its answer is larger than {self._pool.limits.head_bytes} bytes")
        if not data.startswith(HTTP) and not HTTP.startswith(data):
            raise ValueError(NOT_HTTP)
        self._unread = data
        return None, b""

    def _measure(self, size: int) -> tuple[bool, bool]:
        """Whether a body with a length ends with so many bytes more, and whether nothing follows it."""
        if self._remaining < 0 and self._head is not None and self._head.length is not None:
            self._remaining = self._head.length
        self._remaining -= size
        return self._remaining <= 0, self._remaining >= 0

    def _find_end(self, data: bytes) -> tuple[bool, bool]:
        """Whether a chunked body ends with this read, and whether all of it is valid."""
        if self._chunks is None:
            self._chunks = httptools.HttpResponseParser(self)
        if self._remaining < 0:  # the first read
            self._remaining = 0
            self._chunks.feed_data(_CHUNKED)
        try:
            if len(data) <= 2 * len(_HEAD_END):  # perhaps the end's end: the parser takes empty lines after it
                for at in range(len(data)):
                    self._excess = self._complete
                    self._chunks.feed_data(data[at : at + 1])
                return self._complete, not self._excess
            self._chunks.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False, False
        if not self._complete:
            return False, True
        return True, not self._excess and data.endswith(_HEAD_END) and not data.endswith(b"\r\n" + _HEAD_END)

    def _fail(self, call: "Call", reason: str) -> None:
        self.drop()
        call.lost(Failure("invalid", reason), answered=True)

    def _release(self, *, reusable: bool) -> None:
        self.call = None
        if not reusable or self._transport.is_closing() or self._transport.get_write_buffer_size():
            self.drop()
            return
        self._pool.give_back(self)
