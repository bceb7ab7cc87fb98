"""Both sides of KV transfer in one event loop, over real sockets and memfds, with cores that do what a test says."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from engine.errors import RequestError
from engine.kv.pool import KVLayout, KVPool
from engine.scheduler.handoff import Prefilled, Reservation
from engine.scheduler.request import Request, SamplingParams
from engine.transfer.base import Computed, Identity, Peer, Pushed, Target, TransferLimits, Transport, Writer
from engine.transfer.blocks import Shard
from engine.transfer.checksum import PoolChecksum
from engine.transfer.receiver import DecodeTransfer
from engine.transfer.sender import Delivered, PrefillTransfer
from engine.transfer.transports.shm import ShmTransport
from engine.transfer.waits import finish

BLOCK = 16
LAYOUT = KVLayout(num_kv_heads=2, num_layers=3, block_size=BLOCK, head_dim=8, dtype=torch.float32)
LIMITS = TransferLimits(connect_s=5.0, reserve_s=5.0, join_s=5.0, deliver_s=15.0, ping_s=0.2, silence_s=10.0)
PREFILL, DECODE = "10.0.0.1:8101", "10.0.0.2:8201"

_T = TypeVar("_T")


async def within(awaitable: Awaitable[_T], seconds: float = 5.0) -> _T:
    """Wait no longer than that."""
    return await asyncio.wait_for(awaitable, seconds)


async def both(*legs: "asyncio.Task[object]", cancel: "asyncio.Task[object] | None" = None, after: float = 0.0) -> bool:
    """Wait for both legs of a request, as the router does: when one fails, the other is cancelled. Whether they passed.

    One of them may be cancelled some time after the start.
    """
    if cancel is not None:
        await asyncio.wait(legs, timeout=after)
        cancel.cancel()
    try:
        await asyncio.gather(*legs)
    except (asyncio.CancelledError, RequestError):
        for leg in legs:
            leg.cancel()
        await asyncio.gather(*legs, return_exceptions=True)
        return False
    return True


def request(request_id: str, prompt: Sequence[int] | int = 40, n: int = 1) -> Request:
    """A request for a prompt, or for one of that many tokens."""
    tokens = list(range(100, 100 + prompt)) if isinstance(prompt, int) else list(prompt)
    return Request(request_id, tokens, SamplingParams(max_tokens=8, n=n))


def shard(pool: KVPool) -> Shard:
    """What a pool holds: all KV heads."""
    heads = pool.layout.num_kv_heads
    return Shard(0, heads, pool.layout.block_bytes // heads, pool.num_blocks)


def identity(engine_id: str, blocks: int = 64, **changes: object) -> Identity:
    """What an engine of the test deployment says about itself."""
    heads = LAYOUT.num_kv_heads
    facts = {"shard": Shard(0, heads, LAYOUT.block_bytes // heads, blocks)}
    facts |= {"compat": "0123456789abcdef", "layout": LAYOUT.describe(), "token": "the deployment's token"}
    return Identity(engine_id, **{**facts, **changes})


def write_kv(pool: KVPool, table: list[int], prompt: list[int], start: int, end: int) -> None:
    """Write what the KV of prompt[start:end] would be."""
    positions = torch.arange(start, end)
    values = torch.tensor(prompt[start:end]) * 1000 + positions
    blocks = torch.tensor(table)[positions // BLOCK]
    pool.tensor[blocks, :, :, :, positions % BLOCK] = values.view(-1, 1, 1, 1, 1).to(pool.tensor.dtype)


def read_prompt(pool: KVPool, table: list[int], tokens: int) -> list[int]:
    """Tell which prompt's KV is in the blocks; 0 where a position's KV is torn."""
    positions = torch.arange(tokens)
    blocks = torch.tensor(table)[positions // BLOCK]
    values = pool.tensor[blocks, :, :, :, positions % BLOCK].flatten(1)
    whole = (values == values[:, :1]).all(1)
    read: list[int] = ((values[:, 0].long() - positions) // 1000 * whole).tolist()
    return read


def kernel_objects() -> tuple[int, int]:
    """How many descriptors this process has open, and how many memory files it maps."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()), Path("/proc/self/maps").read_text().count("memfd")


class Blocks:
    """Free blocks, handed out at random."""

    def __init__(self, pool: KVPool) -> None:
        self.total = pool.num_blocks
        self.free = set(range(pool.num_blocks))

    def take(self, tokens: int) -> list[int]:
        table = random.sample(sorted(self.free), -(-tokens // BLOCK))
        self.free -= set(table)
        return table

    def give(self, table: list[int]) -> None:
        assert not self.free & set(table), "a block was freed twice"
        self.free |= set(table)


class PrefillCoreDouble:
    """Computes a chunk of a prompt when it is told to."""

    def __init__(self, pool: KVPool, transfer: PrefillTransfer) -> None:
        self.pool = pool
        self.blocks = Blocks(pool)
        self.submitted: asyncio.Queue[Request] = asyncio.Queue()
        self.aborted: list[str] = []
        self.released: asyncio.Queue[str] = asyncio.Queue()
        self.refusal: RequestError | None = None
        self._transfer = transfer
        self._tables: dict[str, list[int]] = {}

    def check(self, request: Request) -> None:
        if self.refusal is not None:
            raise self.refusal

    def submit(self, request: Request, *, hold: bool = False) -> None:
        assert hold
        self._tables[request.request_id] = self.blocks.take(len(request.prompt))
        self.submitted.put_nowait(request)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def release(self, request_id: str) -> None:
        self.blocks.give(self._tables.pop(request_id))
        self.released.put_nowait(request_id)

    async def compute(self, request: Request, start: int, end: int, first_tokens: list[int] | None = None) -> None:
        """Compute prompt[start:end] in another thread, as the core does."""
        await asyncio.to_thread(self._compute, request, start, end, first_tokens)

    async def compute_all(self, request: Request, *, chunk: int = 512, first_tokens: list[int] | None = None) -> None:
        """Compute the whole prompt in chunks."""
        tokens = len(request.prompt)
        for start in range(0, tokens, chunk):
            end = min(start + chunk, tokens)
            last = (first_tokens or [7]) if end == tokens else None
            await self.compute(request, start, end, last)

    def _compute(self, request: Request, start: int, end: int, first_tokens: list[int] | None) -> None:
        table = self._tables.get(request.request_id)
        if table is not None:
            write_kv(self.pool, table, request.prompt, start, end)
            self._transfer.on_prefilled(Prefilled(request.request_id, list(table), start, end, first_tokens))


class DecodeCoreDouble:
    """Grants blocks at once, or when it is told to."""

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool
        self.blocks = Blocks(pool)
        self.at_once = True
        self.cached_tokens = 0
        self.asked: asyncio.Queue[tuple[str, list[int], Future[Reservation]]] = asyncio.Queue()
        self.started: asyncio.Queue[tuple[Request, Reservation, list[int]]] = asyncio.Queue()
        self.cancelled: asyncio.Queue[Reservation] = asyncio.Queue()
        self.refusal: RequestError | None = None

    def check(self, request: Request) -> None:
        if self.refusal is not None:
            raise self.refusal

    def reserve(self, request_id: str, prompt: list[int]) -> Future[Reservation]:
        future: Future[Reservation] = Future()
        if self.at_once:
            self.grant(request_id, prompt, future)
        else:
            self.asked.put_nowait((request_id, prompt, future))
        return future

    def grant(self, request_id: str, prompt: list[int], future: Future[Reservation]) -> None:
        if len(self.blocks.free) * BLOCK < len(prompt):
            future.set_exception(RequestError("the pool is full", status=503))
            return
        table = self.blocks.take(len(prompt))
        future.set_result(Reservation(request_id, prompt, table, self.cached_tokens))

    def start_decode(self, request: Request, reservation: Reservation, first_tokens: list[int]) -> None:
        self.started.put_nowait((request, reservation, first_tokens))

    def cancel_reservation(self, reservation: Reservation) -> None:
        self.blocks.give(reservation.block_table)
        self.cancelled.put_nowait(reservation)

    def finish(self, reservation: Reservation) -> None:
        """The request that was started has ended."""
        self.blocks.give(reservation.block_table)


class HeldTransport:
    """Shared memory whose pushes wait, and cannot be called back: each write lands when the gate opens."""

    name = "ipc"

    def __init__(self, pool: KVPool) -> None:
        self._inner = ShmTransport(pool)
        self.open_inlet, self.start, self.close = self._inner.open_inlet, self._inner.start, self._inner.close
        self.gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pushing = asyncio.Event()

    async def connect(self, offer: bytes, target: Target) -> Writer:
        return _HeldWriter(self, await self._inner.connect(offer, target))


class _HeldWriter:
    def __init__(self, held: HeldTransport, inner: Writer) -> None:
        self._held = held
        self._inner = inner

    failed = False

    async def push(self, source: Sequence[int], target: Sequence[int], after: Computed | None = None) -> Pushed:
        return await finish(asyncio.ensure_future(self._push(source, target)))

    async def _push(self, source: Sequence[int], target: Sequence[int]) -> Pushed:
        self._held.pushing.set()
        await asyncio.shield(self._held.gate)
        return await self._inner.push(source, target)

    async def close(self) -> None:
        if self._held.pushing.is_set():
            await asyncio.wait({self._held.gate})
        await self._inner.close()


@dataclass
class Pair:
    """A prefill and a decode engine without their HTTP servers."""

    prefill: PrefillTransfer
    prefill_core: PrefillCoreDouble
    decode: DecodeTransfer
    decode_core: DecodeCoreDouble
    peer: Peer

    def deliver(self, request: Request) -> "asyncio.Task[Delivered]":
        """Start prefill's leg."""
        return asyncio.create_task(self.prefill.deliver(request, self.peer))

    def receive(self, request: Request) -> "asyncio.Task[None]":
        """Start decode's leg."""
        return asyncio.create_task(self.decode.receive(request, PREFILL))

    async def submitted(self) -> Request:
        """Wait until the prefill core has got a request."""
        return await within(self.prefill_core.submitted.get())

    def check_idle(self) -> None:
        """Nothing is left of any request, and no block is lost."""
        assert self.prefill_core.blocks.free == set(range(self.prefill_core.blocks.total))
        assert self.decode_core.blocks.free == set(range(self.decode_core.blocks.total))
        assert not self.prefill._outbounds
        assert not self.decode._rendezvous._waiting
        assert not self.decode._rendezvous._unclaimed


@asynccontextmanager
async def decode_side(
    pool: KVPool, *, limits: TransferLimits = LIMITS, transports: Sequence[Transport] = (), **changes: object
) -> AsyncIterator[tuple[DecodeTransfer, DecodeCoreDouble, Peer]]:
    """A decode engine that takes KV."""
    core = DecodeCoreDouble(pool)
    decode = DecodeTransfer(
        transports or [ShmTransport(pool)],
        identity(DECODE, pool.num_blocks, **changes),
        PoolChecksum(pool),
        limits=limits,
    )
    port = await decode.start(core, "127.0.0.1", 0)
    try:
        yield decode, core, Peer("127.0.0.1", port)
    finally:
        await within(decode.close(), 12.0)


@asynccontextmanager
async def prefill_side(
    pool: KVPool,
    *,
    limits: TransferLimits = LIMITS,
    transports: Sequence[Transport] = (),
    checksum: PoolChecksum | None = None,
    **changes: object,
) -> AsyncIterator[tuple[PrefillTransfer, PrefillCoreDouble]]:
    """A prefill engine that sends KV."""
    own = identity(PREFILL, pool.num_blocks, **changes)
    prefill = PrefillTransfer(
        transports or [ShmTransport(pool)], own, block_size=BLOCK, limits=limits, checksum=checksum
    )
    core = PrefillCoreDouble(pool, prefill)
    prefill.start(core)
    try:
        yield prefill, core
    finally:
        await within(prefill.close())


@asynccontextmanager
async def engines(*, blocks: int = 64, limits: TransferLimits = LIMITS, held: bool = False) -> AsyncIterator[Pair]:
    """A pair; with held, its pushes wait for the gate of `pair.prefill._transport`."""
    source, target = KVPool(LAYOUT, blocks, shared=False), KVPool(LAYOUT, blocks, shared=True)
    transports = [HeldTransport(source)] if held else []
    with closing(target):
        async with (
            decode_side(target, limits=limits) as (decode, decode_core, peer),
            prefill_side(source, limits=limits, transports=transports) as (prefill, prefill_core),
        ):
            yield Pair(prefill, prefill_core, decode, decode_core, peer)
