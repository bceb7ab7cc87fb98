"""A request's answer on its way to the client: begun once, passed on piece by piece, never cut without a sign."""

from typing import Protocol

from pdctl.router.figures.metrics import Metrics
from pdctl.router.messages import Head
from pdctl.router.openai_errors import error_event
from pdctl.router.requests.resume import ResumableStream
from pdctl.router.upstream.dechunker import Dechunker

_USAGE = b'"completion_tokens":'
_USAGE_WITHIN = 2048  # bytes at the end of a piece
_OTHER_EVENTS = 3  # of a stream: the role, the end's reason, [DONE]
_BETWEEN_EVENTS = (b"\n\n", b"\r\n\r\n")
_BETWEEN_CHUNKS = (b"\n\n\r\n", b"\r\n\r\n\r\n")  # an event's end, and its chunk's


class Receiver(Protocol):
    """Who gets an answer: a client's connection, or the router itself."""

    @property
    def takes_chunks(self) -> bool:
        """Whether the body may come in HTTP's chunks."""

    @property
    def address(self) -> str:
        """Whose it is."""

    def start(self, status: int, headers: bytes, length: int | None, *, framed: bool = False) -> None:
        """Begin an answer."""

    def write(self, body: bytes, *, end: bool) -> None:
        """A piece of the answer's body."""

    def error(self, status: int, message: str, *, code: str | None = None, headers: bytes = b"") -> None:
        """An answer that is an error."""

    def break_off(self, last: bytes | None = None) -> None:
        """End an answer that cannot be completed."""


class Answer:
    """What one client gets."""

    __slots__ = (
        "_before",
        "_client",
        "_dechunker",
        "_event_stream",
        "_events",
        "_framed",
        "_metrics",
        "_tail",
        "begun",
        "counts_events",
        "first",
        "last",
        "size",
        "status",
        "stream",
    )

    def __init__(self, client: Receiver, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics
        self.begun = False
        self.status = 0
        self.size = 0  # bytes of the body
        self.first = 0.0  # when the first piece of the body came
        self.last = 0.0  # and the last
        self.stream: ResumableStream | None = None  # if another pair could go on with it
        self._event_stream = False
        self._framed = False  # the body is passed on in the engine's chunks
        self._dechunker: Dechunker | None = None
        self.counts_events = False
        self._events = 0  # of a stream, if they are counted
        self._before = b""  # the last piece but one of the body so far
        self._tail = b""  # and the last

    def begin(self, head: Head, headers: bytes, stream: ResumableStream | None) -> None:
        """Begin the answer. `stream` will be told of its events, if it is a stream of events."""
        self.begun = True
        self.status = head.status
        self._event_stream = head.event_stream and head.length is None
        self.stream = stream if self._event_stream else None
        self._framed = head.chunked and self.stream is None and self._client.takes_chunks
        self._client.start(head.status, head.headers + headers, head.length, framed=self._framed)
        self.continue_with(head)

    def continue_with(self, head: Head) -> None:
        """Take what follows from another engine's answer."""
        self._dechunker = Dechunker() if head.chunked and not self._framed else None

    def take(self, body: bytes) -> bytes:
        """What is to be passed on of a piece of an engine's body: all of it, or whole events of a stream."""
        if self._dechunker is not None:
            body = self._dechunker.feed(body)
        return body if self.stream is None else self.stream.feed(body)

    def pass_on(self, body: bytes, now: float, *, end: bool) -> None:
        """Send what has been taken to the client."""
        if body:
            self._time(now)
            self.size += len(body)
            self._before, self._tail = self._tail, body
            if self.counts_events and self._event_stream:
                self._events += body.count(b"\n\n")
        self._client.write(body, end=end)

    def error(self, status: int, message: str, code: str, headers: bytes) -> None:
        """Answer with an error, where nothing has been answered."""
        self.status = status
        self._client.error(status, message, code=code, headers=headers)

    def refuse(self, head: Head, body: bytes, headers: bytes) -> None:
        """Answer with an engine's error, where nothing has been answered."""
        self.status = head.status
        self._client.start(head.status, head.headers + headers, len(body))
        self._client.write(body, end=True)

    def break_off(self, status: int, message: str, code: str) -> None:
        """Tell a client in the middle of its answer that there is no more."""
        event = error_event(status, message, code) if self._event_stream and self._is_between_events() else None
        failure = self.stream.failure() if self.stream is not None else None
        self._client.break_off(failure or event)

    @property
    def completion_tokens(self) -> int | None:
        """What the answer says of its own length, else one token for each event if they are counted, else None."""
        if self.stream is not None:
            return self.stream.tokens
        tail = self._before[-_USAGE_WITHIN:] + self._tail[-_USAGE_WITHIN:]
        at = tail.rfind(_USAGE)
        if at < 0:
            return max(0, self._events - _OTHER_EVENTS) if self.counts_events and self._event_stream else None
        digits = tail[at + len(_USAGE) : at + len(_USAGE) + 12].lstrip().split(b",", 1)[0].split(b"}", 1)[0]
        return int(digits) if digits.isdigit() else None

    def _time(self, now: float) -> None:
        if not self.first:
            self.first = now
        elif self._event_stream:
            self._metrics.itl.observe(now - self.last)
        self.last = now

    def _is_between_events(self) -> bool:
        tail = self._tail[-8:]
        if self._framed:
            return not tail or tail.endswith(_BETWEEN_CHUNKS)
        return not tail or tail.endswith(_BETWEEN_EVENTS)
