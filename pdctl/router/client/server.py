"""The client's side: one protocol per connection, requests answered in order, answers written as they come."""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Protocol, cast

from pdctl.router.client.reader import Budget, Phase, RequestReader
from pdctl.router.messages import JSON, Refusal, Request, status_line
from pdctl.router.openai_errors import error_body
from pdctl.router.settings import Limits


class Work(Protocol):
    """A request that is being served, as its connection sees it."""

    def client_left(self) -> None:
        """The connection is gone: nobody waits for the answer."""

    def pause(self) -> None:
        """The client reads too slowly: write no more until `resume`."""

    def resume(self) -> None:
        """The client has caught up."""


class Client(asyncio.Protocol):
    """One client's connection. `answer` is called with each request when its turn has come."""

    __slots__ = (
        "_address",
        "_advancing",
        "_body_size",
        "_busy",
        "_chunked",
        "_close_after",
        "_deadline",
        "_framed",
        "_head",
        "_headless",
        "_http11",
        "_leaving",
        "_paused",
        "_reader",
        "_reading_paused",
        "_server",
        "_steps",
        "_transport",
        "_work",
    )
    _transport: asyncio.Transport

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._address: str | None = None
        self._reader = RequestReader(server.limits, server.budget)
        self._work: Work | None = None  # what serves the request whose answer is due
        self._busy = False  # an answer is due
        self._advancing = False
        self._head: bytes | None = None  # of the answer, until its first write
        self._chunked = self._framed = self._headless = self._http11 = self._close_after = False
        self._body_size = 0  # of the request whose answer is due
        self._paused = False  # the client reads too slowly
        self._reading_paused = False
        self._leaving = False  # nothing more is answered
        self._steps = 0
        self._deadline = inf

    # What the event loop reports.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, unless there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._server.limits.write_buffer)
        self._server.clients.add(self)
        self._deadline = self._server.now() + self._server.limits.idle_timeout
        if len(self._server.clients) > self._server.limits.clients:
            self._refuse(Refusal(503, "the router has too many connections"))

    def data_received(self, data: bytes) -> None:
        """Read requests; what a refused client still sends is dropped."""
        if self._leaving:
            return
        self._reader.feed(data)
        self._advance()
        if self._reader.ready and not self._reading_paused and self._has_read_ahead():
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """A client that will send no more counts as gone."""
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the work that its client is gone."""
        self._leave()
        self._reader.release(self._reader.held)
        self._server.clients.discard(self)
        if not self._server.clients:
            self._server.on_empty()

    def pause_writing(self) -> None:
        """Pass a slow client's back-pressure on."""
        self._paused = True
        if self._work is not None:
            self._work.pause()

    def resume_writing(self) -> None:
        """Write on."""
        self._paused = False
        if self._work is not None:
            self._work.resume()
        else:
            self._advance()

    def check(self, now: float) -> None:
        """Close a connection that waits for its client for too long."""
        if now < self._deadline:
            return
        if self._leaving or self._reader.phase == "idle":
            self._transport.abort()
            return
        self._refuse(Refusal(408, f"the request's {self._reader.phase} did not arrive in time"))

    # What answers call.

    def reply(self, status: int, body: bytes, *, headers: bytes = b"", content_type: bytes = JSON) -> None:
        """Answer in whole. `headers` are whole lines."""
        self.start(status, b"content-type: %b\r\n%b" % (content_type, headers), len(body))
        self.write(body, end=True)

    def error(self, status: int, message: str, *, code: str | None = None, headers: bytes = b"") -> None:
        """Answer with an OpenAI error object."""
        self.reply(status, error_body(status, message, code), headers=headers)

    def start(self, status: int, headers: bytes, length: int | None, *, framed: bool = False) -> None:
        """Begin an answer with a body of `length` bytes, or of unknown length; sent with the first `write`.

        `framed`: the body will be written in HTTP's chunks.
        """
        bodiless = status in (204, 304)
        self._headless = self._headless or bodiless
        self._framed = framed
        self._chunked = length is None and self._http11 and not bodiless and not framed
        if self._server.draining or (length is None and not self._http11):
            self._close_after = True
        framing = b""
        if self._chunked or framed:
            framing = b"transfer-encoding: chunked\r\n"
        elif length is not None and not bodiless:
            framing = b"content-length: %d\r\n" % length
        if self._close_after:
            framing += b"connection: close\r\n"
        elif not self._http11:
            framing += b"connection: keep-alive\r\n"
        self._head = b"%b%b%b\r\n" % (status_line(status), headers, framing)

    def write(self, body: bytes, *, end: bool) -> None:
        """Write a piece of the answer's body, the last one with `end`."""
        if self._leaving:
            return
        if self._headless:
            body = b""
        elif self._chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if end:
                body += b"0\r\n\r\n"
        if self._head is not None:
            body = self._head + body
            self._head = None
        if body:
            self._transport.write(body)
        if end:
            self._finish()

    def break_off(self, last: bytes | None = None) -> None:
        """End an answer that cannot be completed, with a last piece or at once; the client sees that it is cut."""
        self._work = None
        if last is None or self._leaving:
            self._transport.abort()
            return
        self._chunked = self._chunked or self._framed
        self.write(last, end=False)
        self._leaving = True
        self._linger()

    @property
    def takes_chunks(self) -> bool:
        """Whether the answer that is due may come in HTTP's chunks."""
        return self._http11 and not self._headless

    @property
    def host(self) -> str:
        """The IP address that the connection comes from."""
        return self.address.rpartition(":")[0]

    @property
    def address(self) -> str:
        """Whose connection it is."""
        if self._address is None:
            peer = self._transport.get_extra_info("peername")
            self._address = f"{peer[0]}:{peer[1]}" if peer else ""
        return self._address

    # Turns.

    @property
    def waiting(self) -> bool:
        """Whether nothing is read or answered: the connection may be closed."""
        return not self._busy and not self._reader.ready and self._reader.phase == "idle"

    def close(self) -> None:
        """Close after what is written has been sent."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what serves it is told."""
        self._transport.abort()

    def _advance(self) -> None:
        """Answer the next requests, as long as each is answered at once."""
        if self._advancing:
            return
        self._advancing = True
        ready = self._reader.ready
        while ready and not self._busy and not self._paused and not self._leaving:
            self._take(ready.popleft())
        self._advancing = False
        if self._reading_paused and not ready and not self._leaving:
            self._reading_paused = False
            self._transport.resume_reading()
        if not self._busy and not self._leaving:
            self._await_client()

    def _has_read_ahead(self) -> bool:
        waiting, limits = self._reader.ready, self._server.limits
        held = sum(len(item.body) for item in waiting if isinstance(item, Request))
        return len(waiting) >= limits.pipelined or held > limits.pipelined_bytes

    def _take(self, item: Request | Refusal) -> None:
        if isinstance(item, Refusal):
            self._refuse(item)
            return
        self._busy = True
        self._body_size = len(item.body)
        self._deadline = inf
        self._http11 = item.http11
        self._headless = item.method == b"HEAD"
        self._close_after = not item.keep_alive
        work = self._server.answer(item, self)
        if self._busy:
            self._work = work

    def _finish(self) -> None:
        self._busy = False
        self._work = None
        self._reader.release(self._body_size)
        self._body_size = 0
        if self._close_after or self._server.draining:
            self._leaving = True
            self._linger()
        elif self._reader.ready or self._reader.phase != "idle":
            self._advance()
        else:
            self._deadline = self._server.now() + self._server.limits.idle_timeout

    def _await_client(self) -> None:
        reader, limits = self._reader, self._server.limits
        if reader.expects_continue:
            reader.expects_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if reader.steps != self._steps:  # a deadline counts from a phase's beginning: bytes that trickle do not move it
            self._steps = reader.steps
            self._deadline = self._server.now() + _time_limit(reader.phase, limits)

    def _refuse(self, refusal: Refusal) -> None:
        self._http11 = True
        self._headless = False
        self._close_after = self._busy = True
        self._work = None
        self.error(refusal.status, refusal.message)

    def _linger(self) -> None:
        """Close so that the client can read the answer even while it is still sending."""
        limits = self._server.limits
        unsent = self._transport.get_write_buffer_size()
        self._deadline = self._server.now() + (limits.idle_timeout if unsent else limits.linger)
        if self._reading_paused:
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()  # TLS has its own way to do this

    def _leave(self) -> None:
        self._leaving = True
        self._deadline = self._server.now() + self._server.limits.idle_timeout  # for what it has still to read
        work, self._work = self._work, None
        if work is not None:
            work.client_left()


def _time_limit(phase: Phase, limits: Limits) -> float:
    return {"idle": limits.idle_timeout, "head": limits.head_timeout, "body": limits.body_timeout}[phase]


class Server:
    """All client connections."""

    def __init__(
        self, answer: Callable[[Request, Client], Work | None], on_empty: Callable[[], None], limits: Limits
    ) -> None:
        self.answer = answer
        self.on_empty = on_empty  # called whenever the last connection is gone
        self.limits = limits
        self.clients: set[Client] = set()
        self.budget = Budget(limits.bodies_bytes)
        self.draining = False
        self.now = asyncio.get_running_loop().time

    def check(self, now: float) -> None:
        """Close the connections whose clients are too slow. Called once a tick."""
        for client in tuple(self.clients):
            client.check(now)

    def drain(self) -> None:
        """Close what waits for a request, and everything else after its answer."""
        self.draining = True
        for client in tuple(self.clients):
            if client.waiting:
                client.close()

    def close(self) -> None:
        """Close every connection at once."""
        for client in tuple(self.clients):
            client.abort()
