"""Which bytes go where: whole blocks, and the part that two ranks of different tensor parallelism have in common."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import TransferError
from engine.transfer.blocks import Copy, Fit, Shard, copies, fit

_pairs = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)))
_fits = st.sampled_from([Fit(8, 8, 0, 0, 8), Fit(8, 16, 0, 8, 8), Fit(16, 8, 8, 0, 8), Fit(16, 16, 0, 8, 8)])


def every_byte(runs: list[Copy]) -> list[tuple[int, int]]:
    return [(run.source + i, run.target + i) for run in runs for i in range(run.nbytes)]


@given(_pairs, _fits)
def test_every_byte_of_every_block_goes_to_its_place_in_order(pairs: list[tuple[int, int]], part: Fit):
    expected = [
        (a * part.source_stride + part.source_offset + i, b * part.target_stride + part.target_offset + i)
        for a, b in pairs
        for i in range(part.nbytes)
    ]
    assert every_byte(copies([a for a, _ in pairs], [b for _, b in pairs], part)) == expected


@given(_pairs, _fits)
def test_runs_are_as_long_as_they_can_be(pairs: list[tuple[int, int]], part: Fit):
    runs = copies([a for a, _ in pairs], [b for _, b in pairs], part)
    for one, two in itertools.pairwise(runs):
        assert (one.source + one.nbytes, one.target + one.nbytes) != (two.source, two.target)


def test_neighbours_are_one_run():
    assert copies([3, 4, 5, 9], [7, 8, 9, 10], Fit(2, 2, 0, 0, 2)) == [Copy(6, 14, 6), Copy(18, 20, 2)]
    assert copies([3, 4], [7, 8], Fit(4, 2, 2, 0, 2)) == [Copy(14, 14, 2), Copy(18, 16, 2)]
    assert copies([], [], Fit(2, 2, 0, 0, 2)) == []


def shard(rank: int, tp: int, heads: int = 8, head_bytes: int = 4, blocks: int = 6) -> Shard:
    return Shard(rank * heads // tp, heads // tp, head_bytes, blocks)


@pytest.mark.parametrize(("prefill_tp", "decode_tp"), [(1, 1), (1, 2), (2, 1), (4, 2), (2, 4), (8, 1), (1, 8)])
def test_the_ranks_of_both_sides_move_all_heads_once(prefill_tp: int, decode_tp: int):
    blocks, heads, head_bytes = 6, 8, 4
    table, places = random.sample(range(blocks), 4), random.sample(range(blocks), 4)
    model = {(block, head): random.randbytes(head_bytes) for block in table for head in range(heads)}
    pools = {}
    for rank in range(prefill_tp):
        own = shard(rank, prefill_tp)
        pool = bytearray(own.block_bytes * blocks)
        for (block, head), value in model.items():
            if own.first_head <= head < own.first_head + own.heads:
                at = block * own.block_bytes + (head - own.first_head) * head_bytes
                pool[at : at + head_bytes] = value
        pools[rank] = pool
    for rank in range(decode_tp):
        own = shard(rank, decode_tp)
        target = bytearray(own.block_bytes * blocks)
        written = 0
        for prefill_rank, pool in pools.items():
            try:
                part = fit(shard(prefill_rank, prefill_tp), own)
            except TransferError:
                continue
            for run in copies(table, places, part):
                target[run.target : run.target + run.nbytes] = pool[run.source : run.source + run.nbytes]
                written += run.nbytes
        assert written == len(table) * own.block_bytes
        for block, place in zip(table, places, strict=True):
            for head in range(own.heads):
                at = place * own.block_bytes + head * head_bytes
                assert target[at : at + head_bytes] == model[block, own.first_head + head]


def test_ranks_with_nothing_in_common_are_told_apart():
    with pytest.raises(TransferError, match="no KV head in common: prefill has 0 to 3, decode has 4 to 7"):
        fit(shard(0, 2), shard(1, 2))
    with pytest.raises(TransferError, match="the bytes of a KV head in a block differ: prefill has 4, decode has 8"):
        fit(shard(0, 1), shard(0, 1, head_bytes=8))
