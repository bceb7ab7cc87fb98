"""--kv-checksum: KV that is damaged on its way fails the request, and is never decoded from."""

import asyncio

import pytest
from transfer_harness import LAYOUT, PREFILL, decode_side, prefill_side, request, within

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.checksum import PoolChecksum
from engine.transfer.transports import shm


@pytest.mark.parametrize("cached_tokens", [0, 16])
@pytest.mark.parametrize("damaged", [False, True])
async def test_only_undamaged_kv_is_decoded_from(
    pool: KVPool, cached_tokens: int, damaged: bool, monkeypatch: pytest.MonkeyPatch
):
    source = KVPool(LAYOUT, 64)
    if damaged:
        copy = shm._copy

        def copy_and_flip_a_bit(runs, own, target, after):
            seconds = copy(runs, own, target, after)
            target[runs[-1].target + runs[-1].nbytes // 2] ^= 1
            return seconds

        monkeypatch.setattr(shm, "_copy", copy_and_flip_a_bit)
    async with (
        decode_side(pool) as (decode, decode_core, peer),
        prefill_side(source, checksum=PoolChecksum(source)) as (prefill, prefill_core),
    ):
        decode_core.cached_tokens = cached_tokens
        delivering = asyncio.create_task(prefill.deliver(request("r", 40), peer))
        receiving = asyncio.create_task(decode.receive(request("r", 40), PREFILL))
        await prefill_core.compute_all(await within(prefill_core.submitted.get()), chunk=16)
        await within(delivering)
        if damaged:
            with pytest.raises(TransferError, match=f"the KV of r from prefill {PREFILL} is damaged: its checksum is"):
                await within(receiving)
            assert decode_core.started.empty()
            assert decode.counters.mismatches == 1
            await within(decode_core.cancelled.get())
        else:
            await within(receiving)
            _, reservation, _ = await within(decode_core.started.get())
            decode_core.finish(reservation)
            assert decode.counters.mismatches == 0
        assert decode_core.blocks.free == set(range(64))
