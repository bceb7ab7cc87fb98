"""TCP between two pools: what is copied, in which order, and what is left afterwards."""

import asyncio
import gc
import random
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transfer_harness import kernel_objects, within
from transfer_tcp_pairs import LAYOUT, Gate, connect, inlet, pair, random_pool

from engine.errors import TransferError
from engine.kv.pool import KVLayout, KVPool
from engine.transfer.blocks import Copy, Shard, fit
from engine.transfer.transports.tcp import frames
from engine.transfer.transports.tcp.frames import cut

BLOCK_BYTES = LAYOUT.block_bytes


def kv_threads() -> int:
    """How many threads of the transport run."""
    return sum(thread.name.startswith("kv-") for thread in threading.enumerate())


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that hold a third of a block, so that every push has many."""
    monkeypatch.setattr(frames, "FRAME_BYTES", 1000)


@given(st.lists(st.integers(1, 35), max_size=12))
def test_what_is_cut_is_the_same_bytes_in_order(sizes: list[int]):
    runs = [Copy(1000 * place, 7000 * place, size) for place, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "FRAME_BYTES", 10)
        patch.setattr(frames, "FRAME_SPANS", 3)
        parts = list(cut(runs))
    assert _bytes_of(run for part in parts for run in part) == _bytes_of(runs)
    for part in parts[:-1]:
        assert len(part) == 3 or sum(run.nbytes for run in part) == 10
    assert all(0 < len(part) <= 3 and sum(run.nbytes for run in part) <= 10 for part in parts)


def _bytes_of(runs):
    return [(run.source + place, run.target + place) for run in runs for place in range(run.nbytes)]


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("frame_bytes", [100, 5000, 1 << 20])
async def test_any_blocks_go_to_any_places(streams: int, frame_bytes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frames, "FRAME_BYTES", frame_bytes)
    source, target = random_pool(), random_pool()
    expected = target.tensor.clone()
    async with pair(source, target, streams=streams) as (writer, _):
        for size in (0, 1, 2, 7, 32):
            from_blocks, to_blocks = random.sample(range(32), size), random.sample(range(32), size)
            pushed = await within(writer.push(from_blocks, to_blocks))
            expected[to_blocks] = source.tensor[from_blocks]
            assert torch.equal(target.tensor, expected)
            assert pushed.bytes == size * BLOCK_BYTES
            assert 0 <= pushed.seconds < 5
            assert (pushed.seconds > 0) == (size > 0)
        await within(writer.push(range(32), range(32)))
        assert torch.equal(target.tensor, source.tensor)


async def test_more_runs_than_one_system_call_takes():
    source, target = random_pool(3000), random_pool(3000)
    order = list(range(3000))
    random.shuffle(order)
    async with pair(source, target) as (writer, _):
        await within(writer.push(range(3000), order))
        assert torch.equal(target.tensor[order], source.tensor)


@pytest.mark.parametrize(("prefill", "decode"), [((0, 4), (1, 2)), ((2, 2), (0, 4)), ((0, 3), (2, 2))])
async def test_only_the_heads_that_both_have_are_written(prefill: tuple[int, int], decode: tuple[int, int]):
    (source, sent), (target, taken) = _sharded(*prefill), _sharded(*decode)
    expected = target.tensor.clone()
    part = fit(sent, taken)
    from_blocks, to_blocks = random.sample(range(8), 5), random.sample(range(8), 5)
    async with pair(source, target, part=part) as (writer, _):
        pushed = await within(writer.push(from_blocks, to_blocks))
    for head in range(max(prefill[0], decode[0]), min(sum(prefill), sum(decode))):
        expected[to_blocks, head - decode[0]] = source.tensor[from_blocks, head - prefill[0]]
    assert torch.equal(target.tensor, expected)
    assert pushed.bytes == 5 * part.nbytes


def _sharded(first: int, heads: int) -> tuple[KVPool, Shard]:
    layout = KVLayout(num_kv_heads=heads, num_layers=3, block_size=16, head_dim=8, dtype=torch.bfloat16)
    return random_pool(8, layout), Shard(first, heads, layout.block_bytes // heads, 8)


@pytest.mark.usefixtures("small_frames")
async def test_the_last_push_to_a_block_is_what_stays():
    source, target = random_pool(), random_pool()
    async with pair(source, target, streams=4) as (writer, _):
        for _ in range(20):
            last = random.sample(range(32), 9)
            pushes = [writer.push([block] * 3, [4, 5, 6]) for block in last]
            await within(asyncio.gather(*pushes))
            assert torch.equal(target.tensor[[4, 5, 6]], source.tensor[[last[-1]] * 3])


async def test_a_push_begins_while_the_one_before_it_is_on_its_way():
    source, target = random_pool(), random_pool()
    gates = [Gate(), Gate()]
    async with pair(source, target) as (writer, _):
        pushes = [asyncio.create_task(writer.push([i], [i], gate)) for i, gate in enumerate(gates)]
        await within(gates[0].waits.wait())
        await within(gates[1].waits.wait())
        for gate in gates:
            gate.opened.set()
        await within(asyncio.gather(*pushes))
        assert torch.equal(target.tensor[:2], source.tensor[:2])


@pytest.mark.usefixtures("small_frames")
async def test_blocks_are_read_when_their_kernels_have_ended():
    source, target = random_pool(), random_pool()
    before, gate = target.tensor.clone(), Gate()
    async with pair(source, target) as (writer, _):
        push = asyncio.create_task(writer.push(range(8), range(8), gate))
        await within(gate.waits.wait())
        assert torch.equal(target.tensor, before)
        source.tensor.fill_(3)
        gate.opened.set()
        await within(push)
        assert (target.tensor[:8] == 3).all()


@pytest.mark.usefixtures("small_frames")
async def test_two_writers_of_one_pool():
    sources, target = [random_pool(), random_pool()], random_pool(64)
    async with pair(sources[0], target) as (one, _), pair(sources[1], target) as (other, _):
        await within(
            asyncio.gather(
                *(one.push([block], [block]) for block in range(32)),
                *(other.push([block], [32 + block]) for block in range(32)),
            )
        )
    assert torch.equal(target.tensor, torch.cat([source.tensor for source in sources]))


async def test_a_cancelled_push_is_complete_before_that_is_raised():
    source, target = random_pool(), random_pool()
    gate = Gate()
    async with pair(source, target) as (writer, _):
        push = asyncio.create_task(writer.push([1], [2], gate))
        await within(gate.waits.wait())
        push.cancel()
        _, pending = await asyncio.wait({push}, timeout=0.1)
        assert pending
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await within(push)
        assert torch.equal(target.tensor[2], source.tensor[1])
        await within(writer.push([3], [4]))
        assert torch.equal(target.tensor[4], source.tensor[3])


async def test_close_waits_for_the_pushes_in_flight():
    source, target = random_pool(), random_pool()
    gate = Gate()
    async with pair(source, target) as (writer, _):
        push = asyncio.create_task(writer.push([1], [2], gate))
        await within(gate.waits.wait())
        closing = asyncio.create_task(writer.close())
        _, pending = await asyncio.wait({push, closing}, timeout=0.1)
        assert pending == {push, closing}
        with pytest.raises(TransferError, match="are closed"):
            await writer.push([5], [6])
        gate.opened.set()
        await within(asyncio.gather(push, closing))
        assert torch.equal(target.tensor[2], source.tensor[1])


async def test_a_pair_may_be_idle_for_longer_than_a_peer_may_stall():
    source, target = random_pool(), random_pool()
    async with pair(source, target, stall_s=0.05) as (writer, _):
        for block in range(3):
            await within(writer.push([block], [block]))
            await asyncio.wait({asyncio.create_task(asyncio.Event().wait())}, timeout=0.2)
            assert writer.failure is None
        await within(writer.push([3], [3]))
        assert torch.equal(target.tensor[:4], source.tensor[:4])


async def test_nothing_is_left_in_the_process():
    source, target = random_pool(), random_pool()

    async def connect_and_close() -> None:
        async with pair(source, target, streams=3) as (writer, _):
            await within(writer.push([1], [2]))

    await connect_and_close()
    gc.collect()
    before = kernel_objects(), kv_threads()
    for _ in range(20):
        await connect_and_close()
    assert (kernel_objects(), kv_threads()) == before


async def test_a_failed_connection_leaves_nothing():
    source, target = random_pool(), random_pool()
    async with inlet(target, streams=1) as way_in:
        first = await connect(source, target, way_in.offer)
        gc.collect()
        before = kernel_objects(), kv_threads()
        second = await connect(source, target, way_in.offer)  # one stream more than there are places
        with pytest.raises(TransferError):
            await within(second.push([1], [2]))
        await within(second.close())
        assert (kernel_objects(), kv_threads()) == before
        await within(first.push([1], [2]))
        await within(first.close())


async def test_two_thousand_small_pushes_without_growth():
    source, target = random_pool(), random_pool()
    async with pair(source, target) as (writer, _):

        async def push(times: int) -> None:
            for number in range(times):
                await writer.push([number % 32], [number % 31])

        await within(push(500), 20)
        gc.collect()
        before, objects = sys.getallocatedblocks(), kernel_objects()
        await within(push(1500), 20)
        gc.collect()
        assert sys.getallocatedblocks() - before < 500
        assert kernel_objects() == objects
        assert not writer._pushes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
async def test_pools_on_a_gpu():
    source, target = random_pool(), random_pool()
    source.tensor, target.tensor = source.tensor.cuda(), target.tensor.cuda()
    expected = target.tensor.clone()
    async with pair(source, target) as (writer, _):
        for size in (1, 7, 32):
            from_blocks, to_blocks = random.sample(range(32), size), random.sample(range(32), size)
            expected[to_blocks] = source.tensor[from_blocks]
            event = torch.cuda.Event()
            event.record()
            await within(writer.push(from_blocks, to_blocks, event), 20)
            assert torch.equal(target.tensor, expected)
