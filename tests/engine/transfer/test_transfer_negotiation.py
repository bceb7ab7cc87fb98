"""Two engines use the first transport that works between them, and say why those before it do not."""

import asyncio
import logging
from contextlib import closing
from dataclasses import replace

import pytest
import torch
import transfer_harness
from transfer_harness import (
    DECODE,
    LAYOUT,
    LIMITS,
    PREFILL,
    decode_side,
    prefill_side,
    request,
    shard,
    within,
)

from engine.errors import TransferError
from engine.kv.pool import KVPool
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


WHOLE = replace(LAYOUT, num_kv_heads=4)
HEAD_BYTES = WHOLE.block_bytes // 4


def rank(first: int, heads: int) -> dict[str, object]:
    """What a rank that holds some of the model's KV heads says about itself."""
    return {"layout": WHOLE.describe(), "shard": Shard(first, heads, HEAD_BYTES, 8)}


def write_head_numbers(pool: KVPool, table: list[int], *_: object) -> None:
    pool.tensor[table] = torch.arange(4.0).view(1, 4, 1, 1, 1, 1)


@pytest.mark.parametrize(("first", "heads"), [(0, 2), (2, 2), (1, 3), (0, 4)])
async def test_decode_takes_the_slice_that_it_holds(monkeypatch: pytest.MonkeyPatch, first: int, heads: int):
    monkeypatch.setattr(transfer_harness, "write_kv", write_head_numbers)
    source, target = KVPool(WHOLE, 8), KVPool(replace(WHOLE, num_kv_heads=heads), 8, shared=True)
    with closing(target):
        async with (
            decode_side(target, **rank(first, heads)) as (decode, decode_core, peer),
            prefill_side(source, **rank(0, 4)) as (prefill, prefill_core),
        ):
            delivering = asyncio.create_task(prefill.deliver(request("r", 40), peer))
            receiving = asyncio.create_task(decode.receive(request("r", 40), PREFILL))
            await prefill_core.compute_all(await within(prefill_core.submitted.get()), chunk=16)
            await within(receiving)
            await within(delivering)
            _, reservation, _ = await within(decode_core.started.get())
            arrived = target.tensor[reservation.block_table]
            assert (arrived == torch.arange(first, first + heads).view(1, -1, 1, 1, 1, 1)).all()


@pytest.mark.parametrize(
    ("of_prefill", "of_decode", "reason"),
    [
        ((0, 2), (0, 4), "prefill has KV heads 0 to 1, decode has 0 to 3: .* no more tensor parallelism than decode"),
        ((1, 3), (0, 4), "prefill has KV heads 1 to 3, decode has 0 to 3: "),
        ((0, 3), (2, 2), "prefill has KV heads 0 to 2, decode has 2 to 3: "),
        ((0, 2), (2, 2), "no KV head in common: prefill has 0 to 1, decode has 2 to 3"),
    ],
)
async def test_a_prefill_rank_that_lacks_heads_of_decode_is_rejected(
    pool: KVPool, source: KVPool, of_prefill: tuple[int, int], of_decode: tuple[int, int], reason: str
):
    async with (
        decode_side(pool, **rank(*of_decode)) as (_, _, peer),
        prefill_side(source, **rank(*of_prefill)) as (prefill, _),
    ):
        with pytest.raises(TransferError, match=f"cannot send KV to decode {peer}: rejected: {reason}"):
            await within(prefill._link(peer))
