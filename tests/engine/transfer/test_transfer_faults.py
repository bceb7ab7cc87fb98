"""What goes wrong in a flood of requests, over each transport: no block lost or freed early, no wrong KV."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

import pytest
from transfer_harness import (
    LAYOUT,
    LIMITS,
    PREFILL,
    DecodeCoreDouble,
    TransferLimits,
    kernel_objects,
    prefill_side,
    read_prompt,
    request,
    within,
)
from transfer_processes import (
    BLOCKS,
    FLOOD_BLOCKS,
    EngineProcess,
    decode_over,
    decode_process,
    flood_prompt,
    flooding_prefill_process,
    started,
)

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.receiver import DecodeTransfer

SOON = TransferLimits(ping_s=0.1, silence_s=2.0, connect_s=5.0, join_s=2.0, deliver_s=10.0)
FLOOD = 4  # requests at once


@pytest.fixture
def pool() -> Iterator[KVPool]:
    """Room for the requests at once, and for as many whose clients have left."""
    with closing(KVPool(LAYOUT, FLOOD_BLOCKS, shared=True)) as pool:
        yield pool


@dataclass
class Flood:
    """Requests, some at a time: each goes to a prefill process and to decode, as a router sends it."""

    decode: DecodeTransfer
    core: DecodeCoreDouble
    prefill: EngineProcess
    right: int = 0  # requests whose KV was that of their prompt
    errors: list[TransferError] = field(default_factory=list)
    legs: "set[asyncio.Task[None]]" = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        for number in range(1_000_000):
            while len(self.legs) >= FLOOD:
                await asyncio.wait(self.legs, return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(BrokenPipeError):  # it has been killed
                self.prefill.tell(number)
            leg = asyncio.create_task(self._receive(number))
            self.legs.add(leg)
            leg.add_done_callback(self.legs.discard)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.news.clear()
            await within(self.news.wait(), 20)

    async def _receive(self, number: int) -> None:
        prompt = flood_prompt(number)
        try:
            await self.decode.receive(request(f"r{number}", prompt), PREFILL)
        except TransferError as error:
            self.errors.append(error)
        else:
            _, reservation, _ = self.core.started.get_nowait()
            assert read_prompt(self.core.pool, reservation.block_table, len(reservation.prompt)) == reservation.prompt
            self.core.finish(reservation)
            self.right += 1
        finally:
            self.news.set()


@asynccontextmanager
async def flooded(decode: DecodeTransfer, core: DecodeCoreDouble, prefill: EngineProcess) -> AsyncIterator[Flood]:
    flood = Flood(decode, core, prefill)
    running = asyncio.create_task(flood.run())
    try:
        yield flood
    finally:
        running.cancel()
        for leg in tuple(flood.legs):
            leg.cancel()
        await asyncio.wait({running, *flood.legs})


async def all_free(core: DecodeCoreDouble, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while len(core.blocks.free) < core.blocks.total:
            await core.cancelled.get()


async def test_prefill_killed_in_a_flood(pool: KVPool, transport: str):
    async with (
        decode_over(transport, pool, LIMITS) as (decode, core, peer),
        flooding_prefill_process(peer, transport, LIMITS) as prefill,
    ):
        async with flooded(decode, core, prefill) as flood:
            await flood.until(lambda: flood.right > 20)
            prefill.signal(signal.SIGKILL)
            await flood.until(lambda: bool(flood.errors))
            assert "is lost" in str(flood.errors[0])
        await all_free(core)


async def test_prefill_stalled_in_a_flood_writes_nothing_late(pool: KVPool, transport: str):
    async with (
        decode_over(transport, pool, SOON) as (decode, core, peer),
        flooding_prefill_process(peer, transport, SOON) as prefill,
    ):
        async with flooded(decode, core, prefill) as flood:
            await flood.until(lambda: flood.right > 20)
            prefill.signal(signal.SIGSTOP)
            before = len(flood.errors)
            await flood.until(lambda: len(flood.errors) >= before + FLOOD)
        if transport == "ipc":  # the stopped process may be in the middle of a copy: its blocks wait for it
            prefill.signal(signal.SIGCONT)
        await all_free(core)
        if transport == "ipc":
            return
        core.at_once = False  # it gets no further blocks
        pool.tensor.zero_()
        prefill.signal(signal.SIGCONT)
        prefill.tell(1_000_000)
        await within(core.asked.get())  # it has gone on, seen that its connection is lost, and made another
        assert not pool.tensor.any()


async def test_clients_that_leave_in_a_flood_cost_no_block_and_no_other_request(pool: KVPool, transport: str):
    async with (
        decode_over(transport, pool, LIMITS) as (decode, core, peer),
        flooding_prefill_process(peer, transport, LIMITS) as prefill,
        flooded(decode, core, prefill) as flood,
    ):
        for _ in range(25):
            before = flood.right
            await flood.until(lambda before=before: flood.right > before)
            next(iter(flood.legs)).cancel()
        await flood.until(lambda: flood.right > 50)
        assert not flood.errors


async def test_connections_lost_in_a_flood_are_made_again(pool: KVPool, transport: str):
    async with (
        decode_over(transport, pool, SOON) as (decode, core, peer),
        flooding_prefill_process(peer, transport, SOON) as prefill,
        flooded(decode, core, prefill) as flood,
    ):
        for _ in range(3):
            before = flood.right
            await flood.until(lambda before=before: flood.right > before + 10)
            for connection in tuple(decode._connections):
                connection.cancel()
        before = flood.right
        await flood.until(lambda: flood.right > before + 10)
        assert decode.counters.pairs[transport, PREFILL].connected == 1


async def test_decode_killed_in_a_flood(transport: str):
    source = KVPool(LAYOUT, BLOCKS)
    async with (
        decode_process(transport) as (decode, peer),
        started(transport, source) as transports,
        prefill_side(source, limits=LIMITS, transports=transports) as (prefill, core),
    ):
        delivered: list[object] = []

        async def compute() -> None:
            while True:
                await core.compute_all(await core.submitted.get(), chunk=48)

        async def deliver(first: int) -> None:
            for number in range(first, 1_000_000, FLOOD):
                delivered.append(await prefill.deliver(request(f"r{number}", [number + 1] * 20), peer))
                if len(delivered) == 5:
                    decode.signal(signal.SIGKILL)

        computing = asyncio.create_task(compute())
        failures = await within(asyncio.gather(*map(deliver, range(FLOOD)), return_exceptions=True), 20)
        computing.cancel()
        assert all(isinstance(failure, TransferError) for failure in failures)
        assert len(delivered) >= 5
        assert core.blocks.free == set(range(BLOCKS))


async def test_nothing_is_left_of_many_connections(pool: KVPool, transport: str):
    source = KVPool(LAYOUT, BLOCKS)

    async def once(number: int) -> None:
        async with prefill_side(source, limits=LIMITS, transports=transports) as (prefill, core):
            delivered = asyncio.create_task(prefill.deliver(request(f"r{number}"), peer))
            received = asyncio.create_task(decode.receive(request(f"r{number}"), PREFILL))
            await core.compute_all(await within(core.submitted.get()))
            await within(asyncio.gather(delivered, received))
            _, reservation, _ = decode_core.started.get_nowait()
            decode_core.finish(reservation)

    async with (
        started(transport, source) as transports,
        decode_over(transport, pool) as (decode, decode_core, peer),
    ):
        await once(0)
        await all_ended(decode)
        before = kernel_objects()
        for number in range(1, 11):
            await once(number)
        await all_ended(decode)
        for _ in range(100):
            if kernel_objects() <= before:
                break
            await asyncio.sleep(0.05)  # a connection's socket is closed some turns of the loop later
        assert kernel_objects() <= before


async def all_ended(decode: DecodeTransfer) -> None:
    if decode._connections:
        await within(asyncio.wait(decode._connections))
