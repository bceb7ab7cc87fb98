"""One kept-alive connection to an engine: finds where its answers end, and reports each read as it came."""

import asyncio
import socket
from math import inf
from typing import TYPE_CHECKING, cast

import httptools

from pdctl.router.messages import HOP_BY_HOP, ROUTER_HEADERS, Failure, Head

if TYPE_CHECKING:
    from pdctl.router.upstream import Call, Pool

_NOT_RELAYED = HOP_BY_HOP | ROUTER_HEADERS | {b"content-length"}
_HEAD_END = b"\r\n\r\n"


class EngineConnection(asyncio.Protocol):
    """Carries one call at a time; between two it is its pool's.

    A body is reported in the framing it came in: the parser looks for the end of an answer only.
    """

    __slots__ = (
        "_chunked",
        "_complete",
        "_head",
        "_headers",
        "_keep_alive",
        "_length",
        "_parser",
        "_paused",
        "_pool",
        "_remaining",
        "_skipped",
        "_sse",
        "_transport",
        "_unasked",
        "_unread",
        "call",
        "idle_since",
    )
    _transport: asyncio.Transport
    _headers: list[bytes]
    _head: Head | None
    _length: int | None
    _remaining: int  # bytes of a body with a length
    _unread: bytes  # an incomplete head
    _skipped: int  # interim answers (1xx) before the head

    def __init__(self, pool: "Pool", call: "Call") -> None:
        self.call: Call | None = call
        self.idle_since = inf  # a time while it is idle
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._paused = self._complete = False
        self._reset()

    # What the pool and the call use.

    @property
    def usable(self) -> bool:
        """Whether a call may be sent."""
        return not self._transport.is_closing()

    def begin(self, call: "Call") -> None:
        """Send a call's request."""
        self.call = call
        if not call.bind(self):
            self.drop()
            return
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
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pool.open.add(self)
        if self.call is not None:
            self.begin(self.call)

    def data_received(self, data: bytes) -> None:
        """Find out whether the answer ends with this read, and pass it on."""
        call = self.call
        if call is None:
            self.drop()  # nothing was asked
            return
        head = self._head
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._complete:
                self._fail(call)
                return
            self._unasked = True  # what comes after the end
        if head is None:
            head = self._head
            body = self._body_after_head(data)
            if body is None:
                self._fail(call)
                return
            if head is None:
                return
        else:
            body, head = data, None
        if self._length is not None:
            self._remaining -= len(body)
            if self._remaining < 0:
                body = body[: self._remaining]
        elif self._unasked and self._chunked:  # where the answer ends in this read is not known
            self._fail(call)
            return
        if not self._complete:
            if head is not None or body:
                call.received(head, body, False)
            return
        self._release(reusable=self._keep_alive and not self._unasked)
        call.finished(head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report what the end of the connection means for the call."""
        self._pool.forget(self)
        call, self.call = self.call, None
        if call is None:
            return
        if exc is None and self._head is not None and self._length is None and not self._chunked:
            call.finished(None, b"")  # a body without a length ends with its connection
            return
        reason = "the connection was closed" if exc is None else f"the connection was lost: {exc}"
        when = "before the answer" if self._head is None else "in the middle of the answer"
        answered = self._head is not None or bool(self._unread) or self._skipped > 0
        call.lost(Failure("dropped", f"{reason} {when}"), answered=answered)

    # What the parser reports.

    def on_message_begin(self) -> None:
        """Called by the parser at a message's first byte."""
        self._unasked = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser with a header, and with each trailer after a chunked body."""
        if self._head is not None:
            return
        lower = name.lower()
        if lower not in _NOT_RELAYED:
            self._headers.append(b"%b: %b\r\n" % (name, value))
            if lower == b"content-type":
                self._sse = value.lower().startswith(b"text/event-stream")
            elif lower == b"content-encoding":
                self._sse = False
        elif lower == b"content-length":
            self._length = int(value)
        elif lower == b"transfer-encoding":
            self._chunked = True

    def on_headers_complete(self) -> None:
        """Called by the parser after the last header."""
        status = self._parser.get_status_code()
        if self._complete:
            return
        if status < 200:
            self._skipped += 1
            self._headers.clear()
            return
        self._keep_alive = self._parser.should_keep_alive()
        if self._length is not None:
            self._remaining = self._length
        self._head = Head(status, b"".join(self._headers), self._length, self._sse, self._chunked)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of an answer, or of an interim one (1xx)."""
        self._complete = self._head is not None

    def _reset(self) -> None:
        self._headers = []
        self._head = self._length = None
        self._unread = b""
        self._skipped = 0
        self._complete = self._chunked = self._sse = self._keep_alive = self._unasked = False

    def _body_after_head(self, data: bytes) -> bytes | None:
        """What a read holds after the head; None if it cannot be told."""
        if self._unread:
            data = self._unread + data
        if self._head is None:
            self._unread = data
            return b"" if len(data) <= self._pool.limits.head_bytes else None
        self._unread = b""
        end = data.find(_HEAD_END)
        for _ in range(self._skipped):
            end = data.find(_HEAD_END, end + 4)
        return None if end < 0 else data[end + 4 :]

    def _fail(self, call: "Call") -> None:
        self.drop()
        call.lost(Failure("invalid", "the answer is not valid HTTP"), answered=True)

    def _release(self, *, reusable: bool) -> None:
        self.call = None
        if not reusable or self._transport.is_closing() or self._transport.get_write_buffer_size():
            self.drop()
            return
        self._pool.give_back(self)
