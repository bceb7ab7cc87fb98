"""Pools that NICs do not reach, as those of GPUs may be: by way of host memory beside them."""

import asyncio
import random
from collections.abc import Sequence

import numpy as np
import pytest
from rdma_pair import Memory, connected, link_down, moving, whole_blocks, within

from engine.errors import TransferError
from engine.transfer.transports.rdma import nics as nics_module
from engine.transfer.transports.rdma.memory import PoolMemory, Span, register_host
from engine.transfer.transports.rdma.ports import Port

BLOCK, BLOCKS = 128 << 10, 64
FIT = whole_blocks(BLOCK)
ALL = [*range(0, BLOCKS, 2), *range(1, BLOCKS, 2)]


class HostBounce:
    """Stands in for GpuBounce: another piece of memory beside the pool's."""

    def __init__(self, pool: Memory) -> None:
        self._pool, self._beside = pool.bytes, Memory(pool.nbytes)
        self.address = self._beside.tensor.data_ptr()

    def fetch(self, spans: Sequence[Span]) -> None:
        for at, nbytes in spans:
            self._beside.bytes[at : at + nbytes] = self._pool[at : at + nbytes]

    def settle(self, spans: Sequence[Span]) -> None:
        for at, nbytes in spans:
            self._pool[at : at + nbytes] = self._beside.bytes[at : at + nbytes]


@pytest.fixture(autouse=True)
def _unreachable(monkeypatch: pytest.MonkeyPatch):
    def register(ports: Sequence[Port], pool: Memory) -> PoolMemory:
        bounce = HostBounce(pool)
        return PoolMemory("bounce", register_host(ports, bounce.address, pool.nbytes), bounce)

    monkeypatch.setattr(nics_module, "register", register)


async def test_blocks_go_by_way_of_the_memory_beside():
    async with connected(BLOCKS * BLOCK, FIT) as pair:
        after = pair.target.bytes.copy().reshape(BLOCKS, BLOCK)
        for count in (1, 7, BLOCKS):
            source, target = random.sample(range(BLOCKS), count), random.sample(range(BLOCKS), count)
            after[target] = pair.source.bytes.reshape(BLOCKS, BLOCK)[source]
            await within(pair.writer.push(source, target))
            assert np.array_equal(pair.target.bytes, after.reshape(-1))


async def test_what_a_lost_nic_has_not_carried_lands_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVCACHE_IB_TIMEOUT", "14")
    async with connected(BLOCKS * BLOCK, FIT) as pair:
        push = asyncio.create_task(pair.writer.push(ALL * 5, ALL * 5))
        await moving("rxe1")
        with link_down("dummy1"):
            assert not push.done()
            await within(push)
            assert np.array_equal(pair.target.bytes, pair.source.bytes)


async def test_a_writer_that_is_cut_off_changes_nothing_any_more():
    async with connected(BLOCKS * BLOCK, FIT) as pair:
        pushes = [asyncio.create_task(pair.writer.push(ALL, ALL)) for _ in range(8)]
        await moving("rxe0")
        await within(pair.inlet.drained())
        pair.target.bytes[:] = 0
        outcomes = await within(asyncio.gather(*pushes, return_exceptions=True))
        assert isinstance(outcomes[-1], TransferError)
        assert not pair.target.bytes.any()
