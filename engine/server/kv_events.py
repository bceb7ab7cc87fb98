"""GET /kv_events: which beginnings of prompts the prefix cache holds, as it changes."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial

import msgspec
from aiohttp import web

from engine.errors import RequestError
from engine.scheduler.held_text import HeldText, Watch
from engine.server.sending import send
from engine.server.text_keys import CHUNK_BYTES, KEY_BYTES

LIFE_SIGN_S = 4.0  # what is promised is a line every 5 s
PAUSE_S = 0.02  # between two lines, so that a busy engine sends 50 a second at most
WRITE_TIMEOUT_S = 30.0  # for a reader that does not read
MAX_STREAMS = 64

_HEADERS = {"Content-Type": "application/x-ndjson", "Cache-Control": "no-cache"}


class _Line(msgspec.Struct, frozen=True):
    reset: bool  # the reader forgets what it knew
    stored: list[str]
    removed: list[str]
    chunk_bytes: int | msgspec.UnsetType = msgspec.UNSET


class KvEvents:
    """The streams that are open. Owned by the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ended = False
        self._wakes: set[asyncio.Event] = set()  # of each stream: there is something to send, or it is to end

    def end(self) -> None:
        """End all streams: what they tell of is about to go."""
        self._ended = True
        for wake in self._wakes:
            wake.set()

    async def stream(self, request: web.Request, held: HeldText) -> web.StreamResponse:
        """Send lines until the engine ends or the reader leaves. Raises RequestError where too many listen."""
        if len(self._wakes) >= MAX_STREAMS:
            raise RequestError(f"{MAX_STREAMS} streams are open already", status=503, code="overloaded")
        response = web.StreamResponse(headers=_HEADERS)
        with self._waking() as wake, held.watch(partial(self._loop.call_soon_threadsafe, wake.set)) as watch:
            await response.prepare(request)
            with suppress(ConnectionResetError):  # the reader has left
                async with aclosing(self._lines(held, watch, wake)) as lines:
                    async for line in lines:
                        await send(request, response.write(line), WRITE_TIMEOUT_S)
                await send(request, response.write_eof(), WRITE_TIMEOUT_S)
        return response

    async def _lines(self, held: HeldText, watch: Watch, wake: asyncio.Event) -> AsyncGenerator[bytes]:
        yield _encode(held, watch, first=True)
        while not self._ended:
            await asyncio.sleep(PAUSE_S)
            try:
                async with asyncio.timeout(LIFE_SIGN_S):
                    await wake.wait()
            except TimeoutError:  # nothing has changed, and the line says so
                pass
            wake.clear()  # before taking: what changes from here on wakes again
            yield _encode(held, watch)

    @contextmanager
    def _waking(self) -> Iterator[asyncio.Event]:
        wake = asyncio.Event()
        self._wakes.add(wake)
        try:
            yield wake
        finally:
            self._wakes.remove(wake)


def _encode(held: HeldText, watch: Watch, *, first: bool = False) -> bytes:
    stored, removed = held.take(watch)
    line = _Line(first, _hex(stored), _hex(removed), CHUNK_BYTES if first else msgspec.UNSET)
    return msgspec.json.encode(line) + b"\n"


def _hex(keys: list[bytes]) -> list[str]:
    return b"".join(keys).hex(",", KEY_BYTES).split(",") if keys else []
