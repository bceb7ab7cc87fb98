"""Which bytes of one pool go where in another, also where the two sides hold different KV heads of a model."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from engine.errors import TransferError


class Shard(msgspec.Struct, frozen=True):
    """What one rank's pool holds: some of the model's KV heads, which lie behind each other in each block."""

    first_head: int
    heads: int
    head_bytes: int  # of one KV head in one block
    num_blocks: int

    @property
    def block_bytes(self) -> int:
        """The distance from one block to the next."""
        return self.heads * self.head_bytes


class Fit(NamedTuple):
    """The part of a block that two shards have in common, in bytes: one run on either side."""

    source_stride: int  # from one block to the next
    target_stride: int
    source_offset: int  # in a block
    target_offset: int
    nbytes: int  # of a block


class Copy(NamedTuple):
    """One run of bytes, by its places in the two pools."""

    source: int
    target: int
    nbytes: int


def fit(source: Shard, target: Shard) -> Fit:
    """What a prefill rank has for a decode rank. Raises TransferError where they have no KV head in common."""
    if source.head_bytes != target.head_bytes:
        raise TransferError(
            f"the bytes of a KV head in a block differ: prefill has {source.head_bytes}, decode has {target.head_bytes}"
        )
    first = max(source.first_head, target.first_head)
    end = min(source.first_head + source.heads, target.first_head + target.heads)
    if first >= end:
        raise TransferError(f"no KV head in common: prefill has {_heads(source)}, decode has {_heads(target)}")
    return Fit(
        source.block_bytes,
        target.block_bytes,
        (first - source.first_head) * source.head_bytes,
        (first - target.first_head) * target.head_bytes,
        (end - first) * source.head_bytes,
    )


def check_whole(source: Shard, target: Shard) -> None:
    """Raise TransferError unless the prefill rank has all that the decode rank holds: it would decode with a part."""
    if fit(source, target).nbytes < target.block_bytes:
        raise TransferError(
            f"prefill has KV heads {_heads(source)}, decode has {_heads(target)}: a request's KV has to come from one "
            "prefill rank whole, so give prefill no more tensor parallelism than decode has"
        )


def copies(source: Sequence[int], target: Sequence[int], fit: Fit) -> list[Copy]:
    """Block source[i] to block target[i], in order; neighbours whose targets are neighbours too become one run."""
    runs: list[Copy] = []
    at = to = -1  # where a run that goes on with the last one would begin
    for one, other in zip(source, target, strict=True):
        begin, there = one * fit.source_stride + fit.source_offset, other * fit.target_stride + fit.target_offset
        if begin == at and there == to:
            last = runs[-1]
            runs[-1] = Copy(last.source, last.target, last.nbytes + fit.nbytes)
        else:
            runs.append(Copy(begin, there, fit.nbytes))
        at, to = begin + fit.nbytes, there + fit.nbytes
    return runs


def _heads(shard: Shard) -> str:
    return f"{shard.first_head} to {shard.first_head + shard.heads - 1}"
