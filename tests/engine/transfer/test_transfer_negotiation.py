"""Two engines use the first transport that works between them, and say why those before it do not."""

import asyncio
import logging
from contextlib import closing
from dataclasses import replace

import pytest
from transfer_harness import (
    DECODE,
    LAYOUT,
    LIMITS,
    PREFILL,
    decode_side,
    prefill_side,
    read_prompt,
    request,
    shard,
    within,
)

from engine.errors import TransferError
from engine.kv.pool import KVLayout, KVPool
from engine.transfer.base import Inlet, Target, TransferLimits, Writer
from engine.transfer.blocks import Shard, fit
from engine.transfer.transports.shm import ShmTransport


class Named(ShmTransport):
    """Shared memory under another name, which may not work."""

    def __init__(self, pool: KVPool, name: str, reason: str | None = None, hangs: bool = False) -> None:
        super().__init__(pool)
        self.name = name
        self.inlets: list[Inlet] = []
        self._reason = reason
        self._hangs = hangs

    def open_inlet(self) -> Inlet:
        self.inlets.append(super().open_inlet())
        return self.inlets[-1]

    async def connect(self, offer: bytes, target: Target) -> Writer:
        if self._hangs:
            await asyncio.Event().wait()
        if self._reason is not None:
            raise TransferError(self._reason)
        return await super().connect(offer, target)


async def used(
    prefill_transports: list[Named], decode_transports: list[Named], limits: TransferLimits = LIMITS
) -> list[str]:
    """Have two engines that have these deliver a request; return what each says it used, or raise."""
    source = prefill_transports[0]._pool
    target = decode_transports[0]._pool
    async with (
        decode_side(target, limits=limits, transports=decode_transports) as (decode, _, peer),
        prefill_side(source, limits=limits, transports=prefill_transports) as (prefill, core),
    ):
        await within(prefill._link(peer), 10)
        delivered = asyncio.create_task(prefill.deliver(request("r"), peer))
        await core.compute_all(await within(core.submitted.get()))
        await within(decode.receive(request("r"), PREFILL))
        await within(delivered)
        return [transport for each in (prefill, decode) for transport, _ in each.counters.pairs]


@pytest.fixture
def source():
    return KVPool(LAYOUT, 64)


async def test_the_first_of_prefills_list_that_works_is_used(
    pool: KVPool, source: KVPool, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    prefill = [Named(source, "a", "another host"), Named(source, "b"), Named(source, "c"), Named(source, "d")]
    decode = [Named(pool, "d"), Named(pool, "c"), Named(pool, "a")]
    assert await used(prefill, decode) == ["c", "c"]
    for peer in (f"decode {DECODE}", f"prefill {PREFILL}"):
        assert f"KV transport passed over with {peer}: a: another host" in caplog.text
        assert f"KV transport passed over with {peer}: b: decode does not have it" in caplog.text
        assert f"KV transport with {peer}: c" in caplog.text


async def test_a_transport_that_hangs_is_passed_over_in_time(pool: KVPool, source: KVPool):
    limits = replace(LIMITS, connect_s=0.6)
    prefill = [Named(source, "a", hangs=True), Named(source, "b")]
    assert await used(prefill, [Named(pool, "a"), Named(pool, "b")], limits) == ["b", "b"]


async def test_none_that_works_is_an_error_with_every_reason(pool: KVPool, source: KVPool):
    prefill = [Named(source, "a", "no device"), Named(source, "b", "no route")]
    with pytest.raises(TransferError, match="no KV transport works: a: no device; b: no route"):
        await used(prefill, [Named(pool, "a"), Named(pool, "b")])


async def test_the_way_in_of_a_transport_that_is_not_used_is_closed(pool: KVPool, source: KVPool):
    decode = [Named(pool, "a"), Named(pool, "b")]
    assert await used([Named(source, "b"), Named(source, "a")], decode) == ["b", "b"]
    with pytest.raises(TransferError):
        await within(
            ShmTransport(source).connect(
                decode[0].inlets[0].offer, Target("127.0.0.1", 64, fit(shard(source), shard(pool)))
            )
        )


@pytest.mark.parametrize("prefill_heads", [(0, 2), (2, 2), (1, 3), (0, 4)])
async def test_ranks_of_different_tensor_parallelism_move_what_they_have_in_common(prefill_heads: tuple[int, int]):
    first, heads = prefill_heads
    whole = LAYOUT.__class__(4, LAYOUT.num_layers, LAYOUT.block_size, LAYOUT.head_dim, LAYOUT.dtype)
    part = KVLayout(heads, LAYOUT.num_layers, LAYOUT.block_size, LAYOUT.head_dim, LAYOUT.dtype)
    head_bytes = whole.block_bytes // 4
    source, target = KVPool(part, 8), KVPool(whole, 8, shared=True)
    described = {"layout": whole.describe()}
    with closing(target):
        async with (
            decode_side(target, shard=Shard(0, 4, head_bytes, 8), **described) as (decode, decode_core, peer),
            prefill_side(source, shard=Shard(first, heads, head_bytes, 8), **described) as (prefill, prefill_core),
        ):
            delivering = asyncio.create_task(prefill.deliver(request("r", 40), peer))
            receiving = asyncio.create_task(decode.receive(request("r", 40), PREFILL))
            await prefill_core.compute_all(await within(prefill_core.submitted.get()), chunk=16)
            await within(receiving)
            await within(delivering)
            _, reservation, _ = await within(decode_core.started.get())
            prompt = request("r", 40).prompt
            view = _View(target.tensor[:, first : first + heads])
            assert read_prompt(view, reservation.block_table, 40) == prompt
            others = [head for head in range(4) if not first <= head < first + heads]
            assert not target.tensor[:, others].any()


class _View:
    """Some KV heads of a pool."""

    def __init__(self, tensor) -> None:
        self.tensor = tensor
