"""Tokens on their way from the engine core's thread to the handlers on the event loop."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from engine.errors import RequestError
from engine.scheduler.request import Token

TOKEN_TIMEOUT_S = 600.0

_Result = TypeVar("_Result")


class TokenStream:
    """The tokens of one request, in order. Bounded by what the request may generate. Event loop only."""

    def __init__(self) -> None:
        self._tokens: list[Token] = []
        self._error: RequestError | None = None
        self._changed = asyncio.Event()
        self._failed = asyncio.Event()

    def put(self, token: Token) -> None:
        """Add a token."""
        self._tokens.append(token)
        self._changed.set()

    def clear(self) -> None:
        """Drop what has come so far: it is of an aborted request of the same id, which the core had not ended yet."""
        self._tokens.clear()
        if self._error is None:
            self._changed.clear()

    def fail(self, error: RequestError) -> None:
        """End the stream: whoever reads it gets the error."""
        self._error = error
        self._changed.set()
        self._failed.set()

    async def take(self) -> list[Token]:
        """Return all tokens that have come since the last call, at least one."""
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT_S):
                await self._changed.wait()
        except TimeoutError:
            raise RequestError(f"no token came for {TOKEN_TIMEOUT_S:.0f} s", status=504, code="timeout") from None
        self._changed.clear()
        if self._error is not None:
            raise self._error
        tokens, self._tokens = self._tokens, []
        return tokens

    async def guard(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Do what has to be done before tokens come; where the stream fails first, cancel it and raise the error."""
        task, failed = asyncio.create_task(work), asyncio.create_task(self._failed.wait())
        try:
            await asyncio.wait({task, failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._error is not None and not task.done():
                raise self._error
            return await task
        finally:
            failed.cancel()
            task.cancel()
            await asyncio.wait({task, failed})


class TokenStreams:
    """The streams of all requests being served."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: dict[str, TokenStream] = {}  # by request id
        self._of_core: dict[str, TokenStream] = {}  # by the core's id

    def on_tokens(self, tokens: list[Token]) -> None:
        """Take one step's tokens. Called in the core's thread: one hop to the loop for all of them."""
        self._loop.call_soon_threadsafe(self._deliver, tokens)

    def _deliver(self, tokens: list[Token]) -> None:
        for token in tokens:
            stream = self._of_core.get(token.request_id)
            if stream is not None:  # else: aborted while the step ran
                stream.put(token)

    @contextmanager
    def open(self, request_id: str, core_id: str) -> Iterator[TokenStream]:
        """Receive the tokens of a request, which the core knows by ``core_id``, inside the block."""
        if request_id in self._streams:
            raise RequestError(f"request {request_id} is already being served", status=409, code="duplicate_request")
        stream = self._streams[request_id] = self._of_core[core_id] = TokenStream()
        try:
            yield stream
        finally:
            del self._streams[request_id], self._of_core[core_id]

    def fail(self, request_ids: list[str] | None, error: RequestError) -> list[str]:
        """Fail these requests (None: all); return those that were being served."""
        chosen = list(self._streams) if request_ids is None else [i for i in request_ids if i in self._streams]
        for request_id in chosen:
            self._streams[request_id].fail(error)
        return chosen
