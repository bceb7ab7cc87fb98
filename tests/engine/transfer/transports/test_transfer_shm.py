"""Shared memory between two pools: what is copied, who gets in, and what is left afterwards."""

import asyncio
import ctypes
import gc
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import msgspec
import pytest
import torch
from transfer_harness import kernel_objects, shard, within
from transfer_processes import FORKSERVER

from engine.errors import TransferError
from engine.kv.pool import KVLayout, KVPool
from engine.transfer.base import Target
from engine.transfer.blocks import fit
from engine.transfer.transports import shm
from engine.transfer.transports.shm import ShmTransport
from tests.engine.memory_files import memory_files

CLONE_NEWNET = 0x40000000

Pools = Callable[..., tuple[KVPool, KVPool]]


def to(source: KVPool, target: KVPool) -> Target:
    """The target pool as a writer with the source pool sees it."""
    return Target("127.0.0.1", target.num_blocks, fit(shard(source), shard(target)))


def source_pool(blocks: int = 32, dtype: torch.dtype = torch.bfloat16) -> KVPool:
    """A pool of random KV."""
    layout = KVLayout(num_kv_heads=2, num_layers=3, block_size=16, head_dim=8, dtype=dtype)
    pool = KVPool(layout, blocks, shared=False)
    pool.tensor.copy_(torch.randn(pool.tensor.shape))
    return pool


@pytest.fixture
def pools() -> Iterator[Pools]:
    """Makes pools to copy from and to."""
    with ExitStack() as stack:

        def make(blocks: int = 32, dtype: torch.dtype = torch.bfloat16) -> tuple[KVPool, KVPool]:
            source = source_pool(blocks, dtype)
            target = stack.enter_context(closing(KVPool(source.layout, blocks, shared=True)))
            return source, target

        yield make


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
async def test_any_blocks_go_to_any_places(pools: Pools, dtype: torch.dtype):
    source, target = pools(dtype=dtype)
    expected = target.tensor.clone()
    inlet = ShmTransport(target).open_inlet()
    writer = await within(ShmTransport(source).connect(inlet.offer, to(source, target)))
    for size in (0, 1, 2, 7, 32):
        from_blocks, to_blocks = random.sample(range(32), size), random.sample(range(32), size)
        pushed = await within(writer.push(from_blocks, to_blocks))
        expected[to_blocks] = source.tensor[from_blocks]
        assert torch.equal(target.tensor, expected)
        assert pushed.bytes == size * source.layout.block_bytes
    await within(writer.close())
    await within(inlet.drained())


async def test_a_cancelled_push_ends_before_it_raises(pools: Pools, monkeypatch: pytest.MonkeyPatch):
    source, target = pools()
    inlet = ShmTransport(target).open_inlet()
    writer = await within(ShmTransport(source).connect(inlet.offer, to(source, target)))
    loop, copy = asyncio.get_running_loop(), shm._copy
    copying, go_on = asyncio.Event(), asyncio.Event()

    def slow_copy(*args: object) -> float:
        loop.call_soon_threadsafe(copying.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(5)
        return copy(*args)

    monkeypatch.setattr(shm, "_copy", slow_copy)
    push = asyncio.create_task(writer.push([1], [2]))
    await within(copying.wait())
    push.cancel()
    closing = asyncio.create_task(writer.close())
    _, pending = await asyncio.wait({push, closing}, timeout=0.1)
    assert pending == {push, closing}
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await within(push)
    assert torch.equal(target.tensor[2], source.tensor[1])
    await within(closing)
    with pytest.raises(TransferError, match="no longer mapped"):
        await writer.push([1], [2])
    await within(inlet.drained())


async def test_drained_waits_for_the_writers_end(pools: Pools):
    source, target = pools()
    inlet = ShmTransport(target).open_inlet()
    writer = await within(ShmTransport(source).connect(inlet.offer, to(source, target)))
    drained = asyncio.create_task(inlet.drained())
    await asyncio.wait({drained}, timeout=0.1)
    assert not drained.done()
    await within(writer.close())
    await within(drained)


async def test_after_draining_nobody_gets_in(pools: Pools):
    source, target = pools()
    inlet = ShmTransport(target).open_inlet()
    await within(inlet.drained())
    with pytest.raises(TransferError, match="one host, but other network namespaces"):
        await within(ShmTransport(source).connect(inlet.offer, to(source, target)))


async def test_an_inlet_that_is_drained_as_soon_as_it_is_made_lets_nobody_in(pools: Pools):
    source, target = pools()
    inlet = ShmTransport(target).open_inlet()
    await inlet.drained()  # with no turn of the loop before it
    with pytest.raises(TransferError, match="one host, but other network namespaces"):
        await within(ShmTransport(source).connect(inlet.offer, to(source, target)), 2.0)


async def test_an_inlet_admits_one_writer(pools: Pools):
    source, target = pools()
    inlet = ShmTransport(target).open_inlet()
    writer = await within(ShmTransport(source).connect(inlet.offer, to(source, target)))
    with pytest.raises(TransferError):
        await within(ShmTransport(source).connect(inlet.offer, to(source, target)))
    await within(writer.close())
    await within(inlet.drained())


@pytest.mark.parametrize("key", [b"k" * 32, b"short"])
async def test_the_wrong_key_gets_nothing_and_keeps_nobody_out(pools: Pools, key: bytes):
    source, target = pools()
    inlet = ShmTransport(target).open_inlet()
    offer = msgspec.msgpack.decode(inlet.offer)
    with pytest.raises(TransferError, match="did not hand out its shared memory"):
        await within(ShmTransport(source).connect(msgspec.msgpack.encode({**offer, "key": key}), to(source, target)))
    writer = await within(ShmTransport(source).connect(inlet.offer, to(source, target)))
    await within(writer.close())
    inlet.close()


async def test_a_stranger_that_says_nothing_keeps_nobody_out_for_long(pools: Pools, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shm, "_KEY_TIMEOUT_S", 0.1)
    source, target = pools()
    inlet = ShmTransport(target).open_inlet()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect("\0" + msgspec.msgpack.decode(inlet.offer)["socket"])
        writer = await within(ShmTransport(source).connect(inlet.offer, to(source, target)))
    await within(writer.close())
    inlet.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"boot_id": "another"}, "another host"),
        ({"probe": b"x" * 16}, "its shared memory is not the pool that it offered"),
        ({"socket": 5}, "its shared memory offer is malformed"),
        ({"socket": "pdctl-kv-nobody"}, "one host, but other network namespaces"),
    ],
)
async def test_an_offer_that_does_not_fit_is_refused(pools: Pools, change: dict[str, object], reason: str):
    source, target = pools()
    inlet = ShmTransport(target).open_inlet()
    offer = msgspec.msgpack.encode({**msgspec.msgpack.decode(inlet.offer), **change})
    with pytest.raises(TransferError, match=reason):
        await within(ShmTransport(source).connect(offer, to(source, target)))
    inlet.close()


def test_a_pool_that_is_not_shared_cannot_be_offered():
    with pytest.raises(ValueError, match="not shared"):
        ShmTransport(source_pool(blocks=1)).open_inlet()


async def test_nothing_is_left_in_the_process(pools: Pools):
    source, target = pools()

    async def connect_and_close() -> None:
        inlet = ShmTransport(target).open_inlet()
        writer = await within(ShmTransport(source).connect(inlet.offer, to(source, target)))
        await within(writer.push([1], [2]))
        await within(writer.close())
        await within(inlet.drained())
        inlet.close()

    await connect_and_close()
    gc.collect()
    before = kernel_objects(), memory_files(os.getpid())
    for _ in range(30):
        await connect_and_close()
    assert (kernel_objects(), memory_files(os.getpid())) == before


def _connect_from_elsewhere(offer: bytes) -> str:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        return "not permitted"
    source = source_pool(blocks=1)
    try:
        asyncio.run(ShmTransport(source).connect(offer, to(source, source)))
    except TransferError as error:
        return str(error)
    return "connected"


async def test_another_network_namespace_is_refused_clearly(pools: Pools):
    _, target = pools(blocks=1)
    inlet = ShmTransport(target).open_inlet()
    with FORKSERVER.Pool(1) as pool:
        outcome = await asyncio.to_thread(pool.apply_async(_connect_from_elsewhere, (inlet.offer,)).get, 30)
    inlet.close()
    if outcome == "not permitted":
        pytest.skip("making a network namespace is not permitted here")
    assert "one host, but other network namespaces" in outcome
