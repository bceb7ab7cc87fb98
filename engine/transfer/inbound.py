"""One reservation on a decode engine: blocks that a prefill engine may write, for a request that may want them."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import NamedTuple

from engine.errors import RequestError, TransferError
from engine.scheduler.handoff import Reservation
from engine.scheduler.request import Request
from engine.transfer.base import DecodeCore
from engine.transfer.blocks import Fit
from engine.transfer.waits import fail
from engine.transfer.wire import Abort, Done, Granted, Message, Refused, Reserve


class Prefill(NamedTuple):
    """A prefill engine that is connected."""

    engine_id: str
    transport: str
    fit: Fit


class Inbound:
    """A reservation. Its blocks have two owners, the request and the writer, and go back when both have let go."""

    def __init__(
        self,
        wanted: Reserve,
        prefill: Prefill,
        core: DecodeCore,
        send: Callable[[Message], None],
        on_writer_left: Callable[["Inbound"], None],
    ) -> None:
        self.prefill = prefill.engine_id
        self.way = prefill
        self.request_id = wanted.request_id
        self.nonce = wanted.nonce
        self.prompt = wanted.prompt
        self.delivered: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self.dropped = False  # the request has let go
        self._core = core
        self._send = send
        self._on_writer_left = on_writer_left
        self._writing = True  # the writer has not let go
        self._pending: concurrent.futures.Future[Reservation] | None = None  # until granted or refused
        self._reservation: Reservation | None = None

    def reserve(self, timeout_s: float) -> None:
        """Ask the core for blocks; what comes of it is told to the prefill engine."""
        loop = asyncio.get_running_loop()
        self._pending = self._core.reserve(self.request_id, self.prompt)
        late = TransferError(
            f"no place with KV blocks for {len(self.prompt)} tokens became free within {timeout_s:g} s", status=503
        )
        self._timer = loop.call_later(timeout_s, self.drop, late)
        self._pending.add_done_callback(lambda pending: loop.call_soon_threadsafe(self._on_reserved, pending))

    def drop(self, error: RequestError) -> None:
        """The request lets go: it has failed, left, or never came. The prefill engine is told to stop."""
        if self.dropped:
            return
        self.dropped = True
        fail(self.delivered, error)
        if self._pending is not None:
            self._refuse(self._pending, error)
        elif self._writing:
            self._send(Abort(self.request_id, self.nonce, str(error)))
        self._settle()

    def writer_left(self) -> None:
        """The writer lets go: it has said done, abort or quiet, or is dead."""
        if self._writing:
            self._writing = False
            self._on_writer_left(self)
            self._settle()

    def on_done(self, done: Done) -> None:
        """All KV is in place."""
        self.writer_left()
        if not self.delivered.done():
            self.delivered.set_result(done)

    def pushed_blocks(self, block_size: int) -> list[int]:
        """The blocks that the prefill engine has written. Only after on_done()."""
        if self._reservation is None:
            return []
        end = -(-len(self.prompt) // block_size)
        return self._reservation.block_table[self._reservation.cached_tokens // block_size : end]

    def start(self, request: Request, first_tokens: list[int]) -> None:
        """Hand the blocks over to the core, which decodes. Only after on_done()."""
        if self._reservation is None or self._writing:
            raise TransferError(f"prefill {self.prefill} said done for blocks that were not granted to it")
        self._core.start_decode(request, self._reservation, first_tokens)
        self._reservation = None

    def _on_reserved(self, pending: concurrent.futures.Future[Reservation]) -> None:
        if pending.cancelled():
            return
        error = pending.exception()
        if error is not None:
            self.drop(_as_request_error(error))
            return
        self._reservation = pending.result()
        if self.dropped:
            self._settle()  # granted just as it was given up
            return
        self._pending = None
        self._timer.cancel()
        blocks, cached = self._reservation.block_table, self._reservation.cached_tokens
        self._send(Granted(self.request_id, self.nonce, list(blocks), cached))

    def _refuse(self, pending: concurrent.futures.Future[Reservation], error: RequestError) -> None:
        pending.cancel()  # where that comes too late, _on_reserved() gives the blocks back
        self._pending = None
        self._timer.cancel()
        self._send(Refused(self.request_id, self.nonce, str(error), error.status, error.code))
        self.writer_left()

    def _settle(self) -> None:
        if self.dropped and not self._writing and self._reservation is not None:
            self._core.cancel_reservation(self._reservation)
            self._reservation = None


def _as_request_error(error: BaseException) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return TransferError(f"the engine core could not reserve blocks: {error!r}", status=500)
