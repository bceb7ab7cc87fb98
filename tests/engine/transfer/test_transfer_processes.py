"""Prefill and decode in two processes: what arrives, and what remains when one of them is stopped or killed."""

import asyncio
import os
import random
import signal

import pytest
from transfer_harness import (
    LAYOUT,
    PREFILL,
    TransferLimits,
    decode_side,
    prefill_side,
    read_prompt,
    request,
    within,
)
from transfer_processes import BLOCKS, FORKSERVER, decode_process, prefill_process

from engine.errors import TransferError
from engine.kv.pool import KVPool
from tests.engine.memory_files import holders, memory_files


async def test_kv_goes_from_process_to_process(pool: KVPool):
    async with decode_side(pool) as (decode, core, peer), prefill_process(peer) as prefill:
        for i in range(20):
            prompt = [random.randrange(1, 10_000) for _ in range(random.randrange(1, 400))]
            received = asyncio.create_task(decode.receive(request(f"r{i}", prompt), PREFILL))
            prefill.tell(f"r{i}", prompt, random.randrange(1, 200))
            delivered = await prefill.hears()
            await within(received)
            _, reservation, _ = core.started.get_nowait()
            assert read_prompt(pool, reservation.block_table, len(prompt)) == prompt
            assert delivered.bytes == len(reservation.block_table) * LAYOUT.block_bytes
            core.finish(reservation)
        assert decode.counters.failures == 0


async def test_prefill_killed_while_writing(pool: KVPool):
    """Its request fails at once, naming it; its blocks come back, for it is proved that it writes no more."""
    never, memory = FORKSERVER.Event(), memory_files(os.getpid())
    async with decode_side(pool) as (decode, core, peer), prefill_process(peer, writes_until=never) as prefill:
        received = asyncio.create_task(decode.receive(request("r", 40), PREFILL))
        prefill.tell("r", list(range(100, 140)), 512)
        assert await prefill.hears() == "writing"
        assert holders(memory) == {os.getpid(), prefill.pid}
        prefill.signal(signal.SIGKILL)
        with pytest.raises(TransferError, match=f"prefill {PREFILL} is lost: "):
            await within(received)
        freed = await within(core.cancelled.get())
        prefill.end()
        assert holders(memory) == {os.getpid()}
        pool.tensor[freed.block_table] = 0
        assert not pool.tensor.any()


async def test_a_client_that_leaves_while_the_other_process_writes(pool: KVPool):
    """The blocks stay in use as long as the writer writes, and are free when it has said quiet."""
    enough = FORKSERVER.Event()
    async with decode_side(pool) as (decode, core, peer), prefill_process(peer, writes_until=enough) as prefill:
        received = asyncio.create_task(decode.receive(request("r", 40), PREFILL))
        prefill.tell("r", list(range(100, 140)), 512)
        assert await prefill.hears() == "writing"
        received.cancel()
        await asyncio.wait({received})
        with pytest.raises(TimeoutError):
            await within(core.cancelled.get(), 0.3)
        enough.set()
        await within(core.cancelled.get())
        assert "aborted: the request was cancelled" in await prefill.hears()


async def test_prefill_stopped_while_writing(pool: KVPool):
    """Silence fails the request; the blocks stay in use until the stopped process has gone on and let go of them."""
    enough, limits = FORKSERVER.Event(), TransferLimits(ping_s=0.1, silence_s=0.7)
    async with (
        decode_side(pool, limits=limits) as (decode, core, peer),
        prefill_process(peer, limits=limits, writes_until=enough) as prefill,
    ):
        received = asyncio.create_task(decode.receive(request("r", 40), PREFILL))
        prefill.tell("r", list(range(100, 140)), 512)
        assert await prefill.hears() == "writing"
        prefill.signal(signal.SIGSTOP)
        with pytest.raises(TransferError, match=f"prefill {PREFILL} is lost: it has been silent for 0.7 s"):
            await within(received)
        with pytest.raises(TimeoutError):
            await within(core.cancelled.get(), 0.3)
        prefill.signal(signal.SIGCONT)
        enough.set()
        freed = await within(core.cancelled.get())
        assert "is lost" in await prefill.hears()
        pool.tensor[freed.block_table] = 0
        assert not pool.tensor.any()


async def test_prefill_stopped_and_never_seen_again_meets_the_deadline(pool: KVPool):
    limits = TransferLimits(silence_s=60.0, deliver_s=0.5)
    async with decode_side(pool, limits=limits) as (decode, core, peer), prefill_process(peer) as prefill:
        prefill.tell("first", [1, 2, 3], 512)
        await prefill.hears()
        await within(decode.receive(request("first", [1, 2, 3]), PREFILL))
        prefill.signal(signal.SIGSTOP)
        with pytest.raises(TransferError, match=f"waited 0.5 s for the KV of r from prefill {PREFILL}"):
            await within(decode.receive(request("r", 40), PREFILL))
        prefill.signal(signal.SIGKILL)
        assert core.cancelled.empty()


async def test_decode_killed_while_prefill_computes():
    source = KVPool(LAYOUT, BLOCKS)
    async with decode_process() as (decode, peer), prefill_side(source) as (prefill, core):
        delivered = asyncio.create_task(prefill.deliver(request("r", 40), peer))
        computing = await within(core.submitted.get())
        await core.compute(computing, 0, 20)
        decode.signal(signal.SIGKILL)
        with pytest.raises(TransferError, match=r"decode 10.0.0.2:8201 is lost: "):
            await within(delivered)
        assert core.aborted == [computing.request_id] == [core.released.get_nowait()]
        assert prefill.connected_decodes == []
        with pytest.raises(TransferError, match=f"cannot send KV to decode {peer}"):
            await within(prefill.deliver(request("s"), peer))
