"""A checksum over the KV of a prompt, the same on both sides when every byte has arrived (--kv-checksum)."""

import zlib
from collections.abc import Sequence

import torch

from engine.kv.pool import KVPool


class PoolChecksum:
    """Computes CRC-32 over blocks of one pool. Blocks of the tail of a prompt count whole: unused places travel too."""

    def __init__(self, pool: KVPool) -> None:
        self._bytes = pool.tensor.view(-1).view(torch.uint8).view(pool.num_blocks, -1)

    def of(self, blocks: Sequence[int], offset: int, nbytes: int) -> int:
        """The checksum of `nbytes` bytes at `offset` of each block, in order. Takes about a second for a gigabyte."""
        checksum = 0
        for block in blocks:
            checksum = zlib.crc32(self._bytes[block, offset : offset + nbytes].cpu().numpy().data, checksum)
        return checksum
