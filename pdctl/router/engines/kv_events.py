"""Engines that publish which prefixes they hold: one stream from each, kept open, its lines into the index.

`GET /kv_events` answers with JSON lines. The first, `{"reset": true, "stored": [...], "removed": [], "chunk_bytes":
256}`, names all that the engine holds, each later one a change, or all again; at least one comes every 5 s. Keys are
those of prefix_index.py in hexadecimal.
"""

import logging
from collections.abc import Iterable
from struct import iter_unpack

import msgspec

from pdctl.router.access.tokens import bearer
from pdctl.router.engines.instance import Instance
from pdctl.router.engines.prefix_index import CHUNK_BYTES, KEY_BYTES, PrefixIndex
from pdctl.router.messages import Failure, Head
from pdctl.router.upstream.dechunker import Dechunker
from pdctl.router.upstream.pool import Call

log = logging.getLogger(__name__)

MAX_LINE = 8 * 1024 * 1024  # bytes; more than all keys that the index takes from one engine
_SILENCE = 15.0  # seconds without a line after which nothing that was published counts
_RETRY = 5.0  # seconds from one attempt to the next


class KvEvents:
    """The streams of all engines that publish. An engine without one is known by what it was assigned."""

    def __init__(self, index: PrefixIndex, token: str | None) -> None:
        self._index = index
        self._authorization = bearer(token)
        self._streams: dict[str, _Stream] = {}

    def check(self, now: float, instances: Iterable[Instance]) -> None:
        """Open streams that are missing, end silent ones, forget engines that are not live. Called once a tick."""
        live = {instance.key: instance for instance in instances if instance.live}
        for key in [key for key, stream in self._streams.items() if stream.instance is not live.get(key)]:
            self._streams.pop(key).end()
        self._index.check(now, live)
        for instance in live.values():
            if instance.registration.kv_events:
                self._attend(now, instance)

    def close(self) -> None:
        """Close every stream."""
        for stream in self._streams.values():
            stream.end()

    def _attend(self, now: float, instance: Instance) -> None:
        last = self._streams.get(instance.key)
        if last is not None:
            last.check(now)
            if not last.over or now < last.begun + _RETRY:
                return
        payload = instance.pool.request(b"GET", b"/kv_events", self._authorization, b"")
        stream = _Stream(instance, payload, self._index, now)
        stream.known_problem = last is not None and not last.started
        self._streams[instance.key] = stream
        instance.pool.send(stream)


class _Event(msgspec.Struct):
    """One line."""

    reset: bool
    stored: list[str]
    removed: list[str]
    chunk_bytes: int = CHUNK_BYTES


_decoder = msgspec.json.Decoder(_Event)


class _Stream(Call):
    """One engine's stream. Whatever ends it, the index forgets what it said."""

    __slots__ = (
        "_dechunker",
        "_heard",
        "_heard_at",
        "_index",
        "_line",
        "begun",
        "instance",
        "known_problem",
        "started",
    )

    def __init__(self, instance: Instance, payload: bytes, index: PrefixIndex, now: float) -> None:
        super().__init__(instance.pool, payload)
        self.instance = instance
        self.begun = now
        self.started = False  # the first line has come
        self.known_problem = False  # the attempt before has failed too: is not logged again
        self._index = index
        self._dechunker: Dechunker | None = None
        self._line = bytearray()  # an incomplete one
        self._heard = False  # a line since the last check
        self._heard_at = now

    def check(self, now: float) -> None:
        """End it if it has been silent for too long."""
        if self._heard:
            self._heard, self._heard_at = False, now
        elif not self.over and now - self._heard_at > _SILENCE:
            self._fail_with(f"no line for {_SILENCE:g} s")

    def end(self) -> None:
        """Close it."""
        self.cancel()
        self._index.forget(self.instance.key)

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        """Take the lines in one read."""
        if head is not None:
            if head.status != 200:
                self._fail_with(f"it answers {head.status}")
                return
            self._dechunker = Dechunker() if head.chunked else None
        try:
            self._take(body if self._dechunker is None else self._dechunker.feed(body))
        except ValueError as error:
            self._fail_with(str(error))
            return
        if end:
            self._fail_with("the stream ended")

    def failed(self, failure: Failure) -> None:
        """Report it."""
        self._fail_with(failure.reason)

    def _take(self, piece: bytes) -> None:
        first, *others = piece.split(b"\n")
        self._line += first
        for other in others:
            self._apply(self._line)
            self._line = bytearray(other)
        if len(self._line) > MAX_LINE:
            raise ValueError(f"a line is longer than {MAX_LINE} bytes")

    def _apply(self, line: bytearray) -> None:
        try:
            event = _decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(f"a line cannot be read: {error}") from None
        self._heard = True
        if event.reset:
            if event.chunk_bytes != CHUNK_BYTES:
                raise ValueError(f"its keys are of {event.chunk_bytes} bytes each, the router's of {CHUNK_BYTES}")
            self._index.reset(self.instance.key, _keys(event.stored))
            self.started = True
        elif self.started:
            self._index.update(self.instance.key, _keys(event.stored), _keys(event.removed))
        else:
            raise ValueError("its first line is no reset")

    def _fail_with(self, problem: str) -> None:
        self.end()
        log.log(
            logging.DEBUG if self.known_problem and not self.started else logging.WARNING,
            "%s: /kv_events: %s; prefixes are known by what it is assigned, next attempt in %g s",
            self.instance.name,
            problem,
            _RETRY,
        )


def _keys(texts: list[str]) -> list[bytes]:
    try:
        joined = bytes.fromhex("".join(texts))  # at once: a third of the time of one by one
    except ValueError as error:
        raise ValueError(f"its keys are not hexadecimal: {error}") from None
    if len(joined) != KEY_BYTES * len(texts):
        raise ValueError(f"its keys are not {KEY_BYTES} bytes long")
    return [key for (key,) in iter_unpack(f"{KEY_BYTES}s", joined)]
