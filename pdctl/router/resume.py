"""Follows a stream's tokens, so that another pair can go on with it where it broke."""

import re

import msgspec

_TOKEN_IDS = b'"token_ids":['
_CREATED = re.compile(rb'"created":(\d+)')
_DONE = b"data: [DONE]\n\n"
_ERROR = b"event: error\n"


class ResumableStream:
    """One stream of a builtin engine, whose events say which tokens they stand for.

    Only whole events are passed on: one that breaks off is sent by the next pair.
    """

    __slots__ = ("_created", "_id", "_partial", "_tokens", "begun", "complete")

    def __init__(self, request_id: str) -> None:
        self.begun = False  # an event has been passed on
        self.complete = False  # the last one has been
        self._id = request_id
        self._created = b"0"
        self._tokens: list[bytes] = []
        self._partial = b""

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
            return b""
        events, self._partial = data[:end], data[end:]
        failed = _find_error(events)
        if failed >= 0:
            self._partial = events[failed:]
            events = events[:failed]
        if events:
            self._note(events)
        return events

    def failure(self) -> bytes | None:
        """The engine's own error event, if it ended the stream with one."""
        return self._partial if self._partial.startswith(_ERROR) else None

    def resumption(self) -> bytes:
        """What the next pair is told, as JSON; empty if no event has been passed on. Forgets what broke off."""
        self._partial = b""
        if not self.begun:
            return b""
        tokens = b",".join(self._tokens)
        return b'{"id":%b,"created":%b,"token_ids":[%b]}' % (msgspec.json.encode(self._id), self._created, tokens)

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
            if ids and events[start - 1] != 0x5C:  # within a text, the quotation mark has a backslash before it
                self._tokens.append(ids)
            start = events.find(_TOKEN_IDS, end)
        self.complete = events.endswith(_DONE)


def _find_error(events: bytes) -> int:
    """Where an error event of the server's own making begins; -1: nowhere."""
    start = 0 if events.startswith(_ERROR) else events.find(b"\n\n" + _ERROR) + 2
    if start < 2 and not events.startswith(_ERROR):
        return -1
    return start if b'"server_error"' in events[start:] else -1
