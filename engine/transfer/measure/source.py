"""The source: prefill's side, which pushes blocks into the target's pool and takes the time."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from engine.errors import TransferError
from engine.transfer.base import Target, Transport, Writer
from engine.transfer.doorway import Doorway
from engine.transfer.measure.blocks import PUSHES, Piece, SizedBlocks, fill_at_random, make_pool, size_pool
from engine.transfer.measure.control import Control
from engine.transfer.measure.links import memcpy, netdev
from engine.transfer.measure.messages import (
    Admit,
    Clear,
    Dismiss,
    Done,
    Offered,
    Prepare,
    Prepared,
    Sum,
    Summed,
)
from engine.transfer.measure.starting import start_each
from engine.transfer.waits import deadline
from pdctl.bench.transfer.messages import (
    Cell,
    Event,
    Failed,
    Link,
    Links,
    SourceOrders,
    Unusable,
)

_CONNECT_S = 10.0
_WARM_UP_S = 0.05
_CHECKED_BYTES = 64 << 20  # of a cell

Say = Callable[[Event], None]


class _UnusableError(TransferError):
    """The two sides cannot connect."""


class _Run(NamedTuple):
    pushes: int
    seconds: float


async def run_source(orders: SourceOrders, say: Say) -> None:
    """Measure the whole sweep. Raises EngineError; TransferError where the target does not answer in time."""
    control = await Control.dial(orders.host, orders.port, orders.key)
    try:
        await _Source(orders, control, say).run()
    finally:
        control.close()


class _Source:
    """Goes through the sweep: transports, of each the block sizes, of each the blocks in flight."""

    def __init__(self, orders: SourceOrders, control: Control, say: Say) -> None:
        self._orders = orders
        self._control = control
        self._say = say
        unit, units = size_pool(orders.block_sizes, orders.in_flight)
        self._prepare = Prepare(unit, units, orders.transports)
        self._pool = make_pool(unit, units, shared=False)

    async def run(self) -> None:
        """Measure it."""
        filled = asyncio.to_thread(fill_at_random, self._pool)
        _, prepared = await asyncio.gather(filled, self._control.ask(self._prepare, Prepared))
        self._say(Links(await asyncio.to_thread(self._links)))
        # No inlet is opened here: nobody comes through this doorway.
        transports, problems = await start_each(self._orders.transports, self._pool, Doorway())
        reasons = {name: f"on the target's side: {reason}" for name, reason in prepared.problems.items()} | problems
        for name in self._orders.transports:
            if name in reasons:
                self._say(Unusable(name, reasons[name]))
            else:
                await self._measure(transports[name])
        for transport in transports.values():
            await transport.close()

    def _links(self) -> dict[str, Link]:
        links = {"ipc": memcpy(self._pool), "tcp": netdev(*self._control.addresses)}
        fill_at_random(self._pool)  # half of it has been written over
        return links

    async def _measure(self, transport: Transport) -> None:
        try:
            for block_bytes in self._orders.block_sizes:
                await self._measure_size(transport, SizedBlocks(self._pool, block_bytes))
        except _UnusableError as error:
            self._say(Unusable(transport.name, str(error)))
        except TransferError as error:
            self._say(Failed(transport.name, str(error)))

    async def _measure_size(self, transport: Transport, blocks: SizedBlocks) -> None:
        offered = await self._control.ask(Admit(transport.name), Offered)
        try:
            writer = await self._connect(transport, offered.offer, blocks)
            try:
                # One round through the whole pool: a mapping that is new has no pages yet.
                await _push(writer, iter(blocks.pieces(max(self._orders.in_flight))), self._orders.seconds)
                for in_flight in self._orders.in_flight:
                    await self._measure_cell(transport.name, writer, blocks, in_flight)
            finally:
                await writer.close()
        finally:
            await self._control.ask(Dismiss(), Done)

    async def _connect(self, transport: Transport, offer: bytes, blocks: SizedBlocks) -> Writer:
        target = Target(self._orders.host, blocks.count, blocks.fit)
        try:
            async with deadline(_CONNECT_S, f"{transport.name} to be set up"):
                return await transport.connect(offer, target)
        except TransferError as error:
            raise _UnusableError(str(error)) from None

    async def _measure_cell(self, name: str, writer: Writer, blocks: SizedBlocks, in_flight: int) -> None:
        pieces = blocks.pieces(in_flight)
        await _push(writer, itertools.cycle(pieces), _WARM_UP_S)
        checked = pieces[: max(1, _CHECKED_BYTES // (in_flight * blocks.block_bytes))]
        await self._control.ask(Clear(blocks.block_bytes, _targets(checked)), Done)
        run = await _push(writer, itertools.cycle(pieces), self._orders.seconds)
        await self._check(blocks, checked[: run.pushes])
        nbytes = run.pushes * in_flight * blocks.block_bytes
        self._say(Cell(name, blocks.block_bytes, in_flight, nbytes, run.seconds))

    async def _check(self, blocks: SizedBlocks, pieces: list[Piece]) -> None:
        sources = [block for piece in pieces for block in piece.source]
        summing = asyncio.create_task(asyncio.to_thread(blocks.checksum, sources))
        there = await self._control.ask(Sum(blocks.block_bytes, _targets(pieces)), Summed)
        if there.checksum != await summing:
            raise TransferError(f"the contents of {len(sources)} blocks of {blocks.block_bytes} bytes differ")


async def _push(writer: Writer, pieces: Iterable[Piece], seconds: float) -> _Run:
    """Push for so long, or until there are no more pieces. All pushes that began are waited for and count."""
    turns = iter(pieces)
    begin = time.perf_counter()
    pushes = 0

    async def take_turns() -> None:
        nonlocal pushes
        for piece in turns:
            await writer.push(piece.source, piece.target)
            pushes += 1
            if time.perf_counter() - begin >= seconds:
                return

    outcomes = await asyncio.gather(*(take_turns() for _ in range(PUSHES)), return_exceptions=True)
    took = time.perf_counter() - begin
    for outcome in outcomes:
        if outcome is not None:
            raise outcome
    return _Run(pushes, took)


def _targets(pieces: list[Piece]) -> list[int]:
    return [block for piece in pieces for block in piece.target]
