"""Pairs of the tcp transport in one event loop, and a prefill side that sends whatever a test says."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import torch
from transfer_harness import shard, within

from engine.kv.pool import KVLayout, KVPool
from engine.transfer.base import Target
from engine.transfer.blocks import Fit, fit
from engine.transfer.doorway import Doorway, knock
from engine.transfer.transports.tcp.inlet import Offer, TcpInlet
from engine.transfer.transports.tcp.transport import STALL_S, TcpTransport
from engine.transfer.transports.tcp.writer import TcpWriter

LAYOUT = KVLayout(num_kv_heads=2, num_layers=3, block_size=16, head_dim=8, dtype=torch.bfloat16)  # 3,072 bytes


class Gate:
    """Kernels that run until a test says so; `waits` is set when a thread waits for them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.waits = asyncio.Event()
        self.opened = asyncio.Event()

    def synchronize(self) -> None:
        self._loop.call_soon_threadsafe(self.waits.set)
        asyncio.run_coroutine_threadsafe(self.opened.wait(), self._loop).result(10)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what threads and other processes do."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def random_pool(blocks: int = 32, layout: KVLayout = LAYOUT) -> KVPool:
    """A pool of random KV."""
    pool = KVPool(layout, blocks)
    pool.tensor.copy_(torch.randn(pool.tensor.shape))
    return pool


def whole(source: KVPool, target: KVPool) -> Fit:
    """How a block of one goes to a block of the other."""
    return fit(shard(source), shard(target))


@asynccontextmanager
async def doorway() -> AsyncIterator[Doorway]:
    """One that is open."""
    doorway = Doorway()
    await doorway.open("127.0.0.1", 0)
    try:
        yield doorway
    finally:
        await doorway.close()


@asynccontextmanager
async def inlet(target: KVPool, *, streams: int = 2, stall_s: float = STALL_S) -> AsyncIterator[TcpInlet]:
    """A way into a pool."""
    async with doorway() as door:
        inlet = TcpTransport(target, door, streams=streams, stall_s=stall_s).open_inlet()
        try:
            yield inlet
        finally:
            await within(inlet.drained())


async def connect(
    source: KVPool, target: KVPool, offer: bytes, *, part: Fit | None = None, stall_s: float = STALL_S
) -> TcpWriter:
    """A writer behind that offer."""
    to = Target("127.0.0.1", target.num_blocks, part or whole(source, target))
    return await within(TcpTransport(source, Doorway(), stall_s=stall_s).connect(offer, to))


@asynccontextmanager
async def pair(
    source: KVPool, target: KVPool, *, streams: int = 2, stall_s: float = STALL_S, part: Fit | None = None
) -> AsyncIterator[tuple[TcpWriter, TcpInlet]]:
    """A writer and the inlet that it writes through."""
    async with inlet(target, streams=streams, stall_s=stall_s) as way_in:
        writer = await connect(source, target, way_in.offer, part=part, stall_s=stall_s)
        try:
            yield writer, way_in
        finally:
            await within(writer.close())


async def raw_streams(offer: bytes, count: int = 2) -> list[socket.socket]:
    """Streams that have got in."""
    terms = msgspec.msgpack.decode(offer, type=Offer)
    return [await within(knock("127.0.0.1", terms.port, terms.key)) for _ in range(count)]


def frame(
    push: int,
    places: Sequence[tuple[int, int]],
    data: bytes,
    *,
    push_bytes: int | None = None,
    spans: int | None = None,
) -> bytes:
    """A frame as it travels; unless told otherwise, it is the whole push."""
    head = struct.pack("!QQI", push, len(data) if push_bytes is None else push_bytes, spans or len(places))
    return head + b"".join(struct.pack("!QQ", *place) for place in places) + data


async def say(sock: socket.socket, data: bytes) -> None:
    """Send all of it."""
    await within(asyncio.get_running_loop().sock_sendall(sock, data))


async def hear(sock: socket.socket) -> bytes:
    """What comes; nothing: it has been closed."""
    try:
        return await within(asyncio.get_running_loop().sock_recv(sock, 4096))
    except ConnectionResetError:
        return b""
