"""Follows a stream's tokens, so that another pair can go on with it where it broke."""

import re

import msgspec

from pdctl.router.openai_errors import error_event

_TOKEN_IDS = b'"token_ids":['  # not to be found within a text: its quotation marks have backslashes before them
_CREATED = re.compile(rb'"created":(\d+)')
_DONE = b"data: [DONE]\n\n"
_ERROR = b"event: error\n"
_MAX_EVENT = 1024 * 1024  # bytes


class ResumableStream:
    """One stream of a builtin engine, whose events say which tokens they stand for.

    Only whole events are passed on: one that breaks off is sent by the next pair.
    """

    __slots__ = ("_created", "_failure", "_partial", "_tokens", "begun", "complete", "id")

    def __init__(self, request_id: str) -> None:
        self.begun = False  # an event has been passed on
        self.complete = False  # the last one has been
        self.id = request_id  # of the attempt that began it, which chose its tokens
        self._created = b"0"
        self._tokens: list[bytes] = []
        self._partial = b""
        self._failure: bytes | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the passed events stand for."""
        return sum(piece.count(b",") + 1 for piece in self._tokens)

    def feed(self, data: bytes) -> bytes:
        """Take what an engine sent; return the events to pass on."""
        data = self._partial + data
        end = data.rfind(b"\n\n") + 2 if not data.endswith(b"\n\n") else len(data)
        if end < 2:
            self._partial = data
            if len(data) > _MAX_EVENT:
                self._failure = error_event(502, f"an event of the engine's is larger than {_MAX_EVENT} bytes")
            return b""
        events, self._partial = data[:end], data[end:]
        error = _find_error(events)
        if error >= 0:
            events = self._end(events, error)
        if events:
            self._note(events)
        return events

    def failure(self) -> bytes | None:
        """The error event that ended the stream, where another engine can do better."""
        return self._failure

    def resumption(self) -> bytes:
        """What the next pair is told, as JSON; empty if no event has been passed on. Forgets what broke off."""
        self._partial, self._failure = b"", None
        if not self.begun:
            return b""
        tokens = b",".join(self._tokens)
        return b'{"id":%b,"created":%b,"token_ids":[%b]}' % (msgspec.json.encode(self.id), self._created, tokens)

    def _note(self, events: bytes) -> None:
        if not self.begun:
            self.begun = True
            created = _CREATED.search(events)
            if created is not None:
                self._created = created[1]
        start = events.find(_TOKEN_IDS)
        while start >= 0:
            end = events.index(b"]", start)
            ids = events[start + len(_TOKEN_IDS) : end]
            if ids:
                self._tokens.append(ids)
            start = events.find(_TOKEN_IDS, end)
        self.complete = self.complete or events.endswith(_DONE)

    def _end(self, events: bytes, error: int) -> bytes:
        """See what an error event means that begins there; return the events to pass on."""
        end = events.find(b"\n\n", error) + 2
        if b'"server_error"' not in events[error:end]:
            self.complete = True  # the client's own fault: no other engine would do better
            return events[:end]
        self._failure = events[error:end]
        return events[:error]


def _find_error(events: bytes) -> int:
    """Where an error event begins; -1: nowhere."""
    if events.startswith(_ERROR):
        return 0
    at = events.find(b"\n\n" + _ERROR)
    return at if at < 0 else at + 2
