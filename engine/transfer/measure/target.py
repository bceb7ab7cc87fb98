"""The target: decode's side, a pool that the source writes into."""

import asyncio
import socket
from collections.abc import Callable
from typing import assert_never

from engine.errors import EngineError
from engine.transfer.base import Inlet, Transport
from engine.transfer.doorway import Doorway
from engine.transfer.measure.blocks import SizedBlocks, fill_with_zeros, make_pool
from engine.transfer.measure.control import Control
from engine.transfer.measure.messages import (
    Admit,
    Clear,
    Dismiss,
    Done,
    Offered,
    Prepare,
    Prepared,
    Reply,
    Request,
    Sum,
    Summed,
)
from engine.transfer.measure.starting import start_each
from engine.transfer.waits import deadline
from pdctl.bench.transfer.messages import (
    Listening,
    TargetOrders,
)

_SOURCE_S = 120.0  # from listening to the source's connection: it imports torch
_DRAIN_S = 10.0


async def run_target(orders: TargetOrders, say: Callable[[Listening], None]) -> None:
    """Serve one source until it goes. Raises EngineError, TransferError."""
    doorway = Doorway()
    try:
        await doorway.open(orders.host, 0)
    except OSError as error:
        raise EngineError(f"cannot listen on {orders.host}: {error}") from None
    sources: asyncio.Queue[socket.socket] = asyncio.Queue()
    key = doorway.make_door(sources.put_nowait)
    say(Listening(doorway.port, key))
    target = _Target(doorway)
    try:
        async with deadline(_SOURCE_S, "the source to connect"):
            sock = await sources.get()
        doorway.close_door(key)
        await target.serve(await Control.over(sock))
    finally:
        await target.close()
        await doorway.close()


class _Target:
    """Does what the source asks for, one thing after the other."""

    def __init__(self, doorway: Doorway) -> None:
        self._doorway = doorway
        self._transports: dict[str, Transport] = {}
        self._inlet: Inlet | None = None

    async def serve(self, control: Control) -> None:
        """Answer until the source goes."""
        try:
            while (request := await control.next_request()) is not None:
                control.send(await self._do(request))
        finally:
            control.close()

    async def close(self) -> None:
        """Let go of everything, the source's death included."""
        await self._dismiss()
        for transport in self._transports.values():
            await transport.close()

    async def _do(self, request: Request) -> Reply:
        match request:
            case Prepare():
                return await self._prepare(request)
            case Admit():
                self._inlet = self._transports[request.transport].open_inlet()
                return Offered(self._inlet.offer)
            case Clear():
                blocks = SizedBlocks(self._pool, request.block_bytes)
                await asyncio.to_thread(blocks.clear, request.blocks)
                return Done()
            case Sum():
                blocks = SizedBlocks(self._pool, request.block_bytes)
                return Summed(await asyncio.to_thread(blocks.checksum, request.blocks))
            case Dismiss():
                await self._dismiss()
                return Done()
            case _:
                assert_never(request)

    async def _prepare(self, request: Prepare) -> Prepared:
        self._pool = make_pool(request.unit_bytes, request.units, shared=True)
        await asyncio.to_thread(fill_with_zeros, self._pool)
        self._transports, problems = await start_each(request.transports, self._pool, self._doorway)
        return Prepared(problems)

    async def _dismiss(self) -> None:
        if self._inlet is None:
            return
        inlet, self._inlet = self._inlet, None
        async with deadline(_DRAIN_S, "the source's writer to end"):
            await inlet.drained()
        inlet.close()
