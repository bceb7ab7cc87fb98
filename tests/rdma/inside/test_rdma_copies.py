"""What is copied, and over which NICs."""

import asyncio
import random

import numpy as np
import pytest
from rdma_pair import Memory, Pair, connected, counter, decode_side, prefill_side, whole_blocks, within

from engine.transfer.blocks import Fit, copies


def expected(pair: Pair, source: list[int], target: list[int], fit: Fit) -> np.ndarray:
    after = pair.target.bytes.copy()
    for run in copies(source, target, fit):
        after[run.target : run.target + run.nbytes] = pair.source.bytes[run.source : run.source + run.nbytes]
    return after


@pytest.mark.parametrize("block", [64, 5000, 98304, 5 << 20])
async def test_any_blocks_go_to_any_places(block: int):
    blocks, fit = max(4, min(64, (24 << 20) // block)), whole_blocks(block)
    async with connected(blocks * block, fit) as pair:
        for count in (0, 1, 3, blocks):
            source, target = random.sample(range(blocks), count), random.sample(range(blocks), count)
            after = expected(pair, source, target, fit)
            pushed = await within(pair.writer.push(source, target))
            assert np.array_equal(pair.target.bytes, after)
            assert pushed.bytes == count * block


@pytest.mark.parametrize(
    "fit",
    [
        pytest.param(Fit(8192, 2048, 4096, 0, 2048), id="to the third of four ranks"),
        pytest.param(Fit(2048, 8192, 0, 6144, 2048), id="from the fourth of four ranks"),
    ],
)
async def test_a_slice_of_the_heads_goes_to_its_place(fit: Fit):
    source, target = Memory(8 * fit.source_stride, random=True), Memory(8 * fit.target_stride)
    async with decode_side(target) as inlet, prefill_side(source, inlet.offer, fit, 8) as writer:
        pair = Pair(source, target, inlet, writer)
        places = list(range(8))
        after = expected(pair, places, places[::-1], fit)
        await within(writer.push(places, places[::-1]))
        assert np.array_equal(target.bytes, after)


async def test_pushes_at_the_same_time_keep_their_order():
    block = 3000
    async with connected(64 * block, whole_blocks(block)) as pair:
        onto_one_place = [pair.writer.push([n], [9]) for n in range(64)]
        elsewhere = [pair.writer.push([n], [63 - n]) for n in range(10)]
        await within(asyncio.gather(*onto_one_place, *elsewhere))
        source, target = (memory.bytes.reshape(64, block) for memory in (pair.source, pair.target))
        assert np.array_equal(target[63:53:-1], source[:10])
        assert np.array_equal(target[9], source[63])


async def test_one_push_goes_over_both_nics():
    before = [counter(device, "sent_pkts") for device in ("rxe0", "rxe1")]
    async with connected(8 << 20, whole_blocks(1 << 20)) as pair:
        await within(pair.writer.push(range(8), range(8)))
        assert np.array_equal(pair.target.bytes, pair.source.bytes)
    packets = (4 << 20) // 4096
    assert all(counter(f"rxe{n}", "sent_pkts") - before[n] >= packets for n in (0, 1))
