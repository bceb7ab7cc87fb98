"""The pool of a measuring process, cut into blocks of any size, and the order in which they are pushed.

One pool serves the whole sweep, since making its memory takes longer than measuring: a block is a run of its units.
"""

import random
from collections.abc import Sequence
from math import gcd, lcm
from typing import NamedTuple

import torch

from engine.errors import EngineError
from engine.kv.pool import KVLayout, KVPool
from engine.transfer.blocks import Fit
from engine.transfer.checksum import PoolChecksum

UNIT_BYTES = 1024  # every block has a multiple of it
PUSHES = 2  # in flight
_LEAST_BYTES = 256 << 20  # of a pool, so that it is not the caches that are measured ...
_MOST_UNITS = 1 << 14  # ... but not of many tiny blocks
_TOKENS = 16


class Piece(NamedTuple):
    """What one push moves."""

    source: list[int]
    target: list[int]


class SizedBlocks:
    """A pool as blocks of one size."""

    def __init__(self, pool: KVPool, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.count = pool.nbytes // block_bytes
        self.fit = Fit(block_bytes, block_bytes, 0, 0, block_bytes)
        self._units = block_bytes // pool.layout.block_bytes
        self._pool = pool

    def clear(self, blocks: Sequence[int]) -> None:
        """Fill them with zeros."""
        for unit in self._units_of(blocks):
            self._pool.tensor[unit].zero_()

    def checksum(self, blocks: Sequence[int]) -> int:
        """The checksum of their contents, in order."""
        return PoolChecksum(self._pool).of(self._units_of(blocks), 0, self._pool.layout.block_bytes)

    def pieces(self, in_flight: int) -> list[Piece]:
        """The blocks of two such pools, each at most once and scattered at random, in pushes of so many."""
        source, target = random.sample(range(self.count), self.count), random.sample(range(self.count), self.count)
        begins = range(0, self.count - in_flight + 1, in_flight)
        return [Piece(source[begin : begin + in_flight], target[begin : begin + in_flight]) for begin in begins]

    def _units_of(self, blocks: Sequence[int]) -> list[int]:
        return [block * self._units + unit for block in blocks for unit in range(self._units)]


def size_pool(block_sizes: Sequence[int], in_flight: Sequence[int]) -> tuple[int, int]:
    """The bytes of a unit and how many of them there are.

    The largest pushes have room beside each other, and the last block of any size ends where the pool ends: a transport
    may look behind it.
    """
    unit, whole = gcd(*block_sizes), lcm(*block_sizes)
    room = PUSHES * max(in_flight) * max(block_sizes)
    least = max(room, min(_LEAST_BYTES, _MOST_UNITS * unit))
    return unit, -(-least // whole) * (whole // unit)


def make_pool(unit_bytes: int, units: int, *, shared: bool) -> KVPool:
    """A pool of that many units. Raises EngineError where there is no memory for it."""
    layout = KVLayout(1, 1, _TOKENS, unit_bytes // (2 * _TOKENS * torch.bfloat16.itemsize), torch.bfloat16)
    try:
        return KVPool(layout, units, shared=shared)
    except MemoryError:
        mib = unit_bytes * units / 2**20
        raise EngineError(
            f"no memory for a pool of {mib:,.0f} MiB: lower the largest of --block-sizes or --in-flight, "
            "or give block sizes that are multiples of each other"
        ) from None


def fill_at_random(pool: KVPool) -> None:
    """Make every block unlike every other; its memory is there afterwards."""
    pool.tensor.view(-1).view(torch.int64).random_()


def fill_with_zeros(pool: KVPool) -> None:
    """Make its memory be there."""
    pool.tensor.zero_()
