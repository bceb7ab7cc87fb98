"""The two sides of `pdctl bench transfer`, in one process: what is measured, checked and said when something fails."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transfer_harness import within

from engine.errors import EngineError, TransferError
from engine.transfer.base import Target
from engine.transfer.blocks import Copy
from engine.transfer.measure import blocks
from engine.transfer.measure.blocks import SizedBlocks, fill_at_random, make_pool, size_pool
from engine.transfer.measure.control import ControlError
from engine.transfer.measure.links import memcpy, netdev
from engine.transfer.measure.source import run_source
from engine.transfer.measure.target import run_target
from engine.transfer.transports import shm
from engine.transfer.transports.rdma.transport import RdmaTransport
from engine.transfer.transports.shm import ShmTransport, ShmWriter
from pdctl.bench.transfer.messages import (
    Failed,
    Link,
    Links,
    Listening,
    SourceOrders,
    TargetOrders,
    Unusable,
)

KIB = 1024


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_LEAST_BYTES", 2**20)


@asynccontextmanager
async def target() -> AsyncIterator[tuple["asyncio.Task[None]", Listening]]:
    """A target that listens."""
    said: asyncio.Queue[Listening] = asyncio.Queue()
    task = asyncio.create_task(run_target(TargetOrders("127.0.0.1"), said.put_nowait))
    try:
        yield task, await within(said.get())
    finally:
        task.cancel()
        await asyncio.wait({task})


def orders(there: Listening, *transports: str, **changes: Any) -> SourceOrders:
    sweep: dict[str, Any] = {  # sizes of which neither is a multiple of the other
        "block_sizes": [4 * KIB, 6 * KIB],
        "in_flight": [1, 3],
        "seconds": 0.02,
    }
    return SourceOrders("127.0.0.1", there.port, there.key, list(transports), **{**sweep, **changes})


async def measured(*transports: str) -> list[Any]:
    """What the source says."""
    said: list[Any] = []
    async with target() as (serving, there):
        await within(run_source(orders(there, *transports), said.append))
        await within(serving)  # it ends by itself, and without an error
    return said


async def test_the_whole_sweep_is_measured():
    links, *cells = await measured("ipc", "tcp")
    assert isinstance(links, Links)
    assert links.links["tcp"] == Link("loopback")
    assert (links.links["ipc"].gigabytes_s or 0) > 0
    assert [(cell.transport, cell.block_bytes // KIB, cell.in_flight) for cell in cells] == [
        (transport, size, count) for transport in ("ipc", "tcp") for size in (4, 6) for count in (1, 3)
    ]
    for cell in cells:
        assert cell.seconds >= 0.02
        assert cell.bytes > 0
        assert cell.bytes % (cell.block_bytes * cell.in_flight) == 0


async def test_wrong_contents_are_found(monkeypatch: pytest.MonkeyPatch):
    copy = shm._copy

    def damage(runs: list[Copy], own: Any, there: np.ndarray[Any, Any], after: Any) -> float:
        seconds = copy(runs, own, there, after)
        there[runs[0].target] ^= 1
        return seconds

    monkeypatch.setattr(shm, "_copy", damage)
    _, said, *cells = await measured("ipc", "tcp")
    assert isinstance(said, Failed)
    assert said.transport == "ipc"
    assert said.reason.endswith("of 4096 bytes differ")
    assert {cell.transport for cell in cells} == {"tcp"}


async def test_blocks_that_do_not_arrive_are_found(monkeypatch: pytest.MonkeyPatch):
    copy = shm._copy
    monkeypatch.setattr(shm, "_copy", lambda runs, *rest: copy(runs[:-1], *rest))
    _, said = await measured("ipc")
    assert isinstance(said, Failed)


async def test_a_transport_that_breaks_down_ends_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    pushes = 0

    async def push(self: ShmWriter, *args: Any) -> None:
        nonlocal pushes
        pushes += 1
        raise TransferError("the cable is cut")

    monkeypatch.setattr(ShmWriter, "push", push)
    assert (await measured("ipc", "tcp"))[1] == Failed("ipc", "the cable is cut")
    assert pushes == blocks.PUSHES  # and is not tried with the next size


async def test_what_cannot_be_used_is_said_with_its_side(monkeypatch: pytest.MonkeyPatch):
    async def start(self: Any) -> None:
        raise TransferError("there is no NIC")

    async def start_there(self: ShmTransport) -> None:
        if self._pool.fd is not None:
            raise TransferError("no memory files")

    monkeypatch.setattr(RdmaTransport, "start", start)
    monkeypatch.setattr(ShmTransport, "start", start_there)
    _, *said = await measured("rdma", "ipc")
    assert said == [
        Unusable("rdma", "there is no NIC"),
        Unusable("ipc", "on the target's side: no memory files"),
    ]


async def test_what_cannot_be_connected_is_not_usable(monkeypatch: pytest.MonkeyPatch):
    async def connect(self: ShmTransport, offer: bytes, target: Target) -> None:
        raise TransferError("another host")

    monkeypatch.setattr(ShmTransport, "connect", connect)
    _, said = await measured("ipc")
    assert said == Unusable("ipc", "another host")


async def test_a_source_that_goes_ends_the_target():
    async with target() as (serving, there):
        said: asyncio.Queue[Any] = asyncio.Queue()
        measuring = asyncio.create_task(run_source(orders(there, "ipc", "tcp", seconds=60), said.put_nowait))
        await within(said.get())
        measuring.cancel()
        await asyncio.wait({measuring})
        await within(serving)


async def test_a_target_that_goes_ends_the_source():
    async with target() as (serving, there):
        said: asyncio.Queue[Any] = asyncio.Queue()
        measuring = asyncio.create_task(run_source(orders(there, "tcp", seconds=60), said.put_nowait))
        await within(said.get())
        serving.cancel()
        with pytest.raises(ControlError, match="the target has gone"):
            await within(measuring)


async def test_the_wrong_key_does_not_get_in():
    async with target() as (_, there):
        with pytest.raises(ControlError, match=rf"the target at 127.0.0.1:{there.port} cannot be reached"):
            await within(run_source(orders(Listening(there.port, b"x" * 32), "ipc"), print))


async def test_an_address_that_is_not_here():
    with pytest.raises(EngineError, match=r"cannot listen on 192\.0\.2\.1: "):
        await within(run_target(TargetOrders("192.0.2.1"), print))


async def test_a_process_ends_with_pdctl():
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine.transfer.measure", "target"), stdin=pipe, stdout=pipe, stderr=pipe
    )
    process.stdin.write(b'{"host": "127.0.0.1"}\n')
    assert json.loads(await within(process.stdout.readline(), 60))["port"]
    process.stdin.close()
    _, errors = await within(process.communicate(), 10)
    assert (process.returncode, errors) == (1, b"ERROR __main__: pdctl has gone\n")


def test_the_largest_pushes_have_room_beside_each_other():
    unit, units = size_pool([64 * KIB, 48 * KIB], [1, 9000])
    assert unit == 16 * KIB
    assert unit * units == 2 * 9000 * 64 * KIB


def test_blocks_of_every_size_end_where_the_pool_ends():
    unit, units = size_pool([64 * KIB, 40 * KIB], [1])
    assert (unit, unit * units % (64 * KIB), unit * units % (40 * KIB)) == (8 * KIB, 0, 0)


def test_a_pool_is_no_smaller_than_caches_but_not_of_many_tiny_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert size_pool([64 * KIB], [1]) == (64 * KIB, 4096)
    assert size_pool([KIB], [1]) == (KIB, 16384)


def test_pieces_have_every_block_once():
    pool = make_pool(KIB, 64, shared=False)
    pieces = SizedBlocks(pool, 2 * KIB).pieces(5)
    assert len(pieces) == 6
    for side in ([piece.source for piece in pieces], [piece.target for piece in pieces]):
        assert all(len(part) == 5 for part in side)
        listed = [block for part in side for block in part]
        assert len(set(listed)) == len(listed) == 30
        assert set(listed) <= set(range(32))
        assert listed != sorted(listed)


def test_blocks_of_one_size_are_runs_of_the_pool():
    pool = make_pool(KIB, 12, shared=False)
    fill_at_random(pool)
    before = pool.tensor.view(torch.uint8).view(-1).clone()
    three = SizedBlocks(pool, 3 * KIB)
    assert three.count == 4
    sums = [three.checksum([block]) for block in range(4)]
    assert len(set(sums)) == 4
    three.clear([1, 3])
    after = pool.tensor.view(torch.uint8).view(4, -1)
    assert not after[[1, 3]].any()
    assert torch.equal(after[[0, 2]], before.view(4, -1)[[0, 2]])
    assert three.checksum([0, 2]) == SizedBlocks(pool, KIB).checksum([0, 1, 2, 6, 7, 8])
    assert [three.checksum([block]) == sums[block] for block in range(4)] == [True, False, True, False]


def test_no_memory_says_what_to_lower():
    with pytest.raises(EngineError, match=r"no memory for a pool of .* MiB: lower the largest of --block-sizes"):
        make_pool(1 << 30, 1 << 20, shared=False)


def test_links():
    assert netdev("10.9.8.7", "10.9.8.7") == Link("loopback")
    assert netdev("127.0.0.1", "10.9.8.7").name == "lo"
    assert netdev("192.0.2.1", "192.0.2.2") == Link("the interface of 192.0.2.1")
    assert (memcpy(make_pool(KIB, 1024, shared=False)).gigabytes_s or 0) > 0.01
