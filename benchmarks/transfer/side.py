"""One side of a transfer, in a process of its own: what it is told and says, one JSON line each; and what is moved.

It runs in the peers' environments too: only the standard library and numpy are imported here.
"""

import json
import os
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TextIO

import numpy as np

POOL_BYTES = 256 << 20  # on either side: a push goes from and to blocks that no cache of a core holds
PUSH_BYTES = 64 << 20

Memory = np.ndarray[tuple[int], np.dtype[np.uint8]]
Push = Callable[[list[int], list[int], int], float]  # source and target blocks, the size of one: seconds
OpenSource = Callable[[str], AbstractContextManager[tuple[Memory, Push]]]  # the target's address


class Opened(NamedTuple):
    """A target: its memory, and how a source finds it."""

    memory: Memory
    address: str


def new_memory() -> Memory:
    """A pool whose pages are all there."""
    memory = np.empty(POOL_BYTES, np.uint8)
    memory[:] = 1
    return memory


def serve(open_target: Callable[[], AbstractContextManager[Opened]], open_source: OpenSource) -> None:
    """Be the side that the command line names, until there is nothing more to do."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print is no reply
    if sys.argv[1] == "target":
        _serve_target(open_target, replies)
    else:
        _serve_source(open_source, sys.argv[2], replies)


def _serve_target(open_target: Callable[[], AbstractContextManager[Opened]], replies: TextIO) -> None:
    with open_target() as (memory, address):
        _say(replies, {"address": address})
        for line in sys.stdin:
            _say(replies, {"right": _is_right(memory, **json.loads(line))})


def _serve_source(open_source: OpenSource, address: str, replies: TextIO) -> None:
    with open_source(address) as (memory, push):
        memory.view(np.uint64)[:] = np.arange(POOL_BYTES // 8, dtype=np.uint64)
        every = list(range(POOL_BYTES >> 20))
        push(every, every, 1 << 20)  # so that connections and page tables are complete
        _say(replies, {"ready": True})
        for line in sys.stdin:
            wanted = json.loads(line)
            _say(replies, {"seconds": push(*_blocks(**wanted), wanted["block_bytes"])})


def _blocks(seed: int, block_bytes: int) -> tuple[list[int], list[int]]:
    """What a push moves: random blocks, to random blocks."""
    chance = random.Random(seed)
    blocks, moved = range(POOL_BYTES // block_bytes), PUSH_BYTES // block_bytes
    return chance.sample(blocks, moved), chance.sample(blocks, moved)


def _is_right(memory: Memory, seed: int, block_bytes: int) -> bool:
    words = block_bytes // 8
    blocks = memory.view(np.uint64).reshape(-1, words)
    source, target = _blocks(seed, block_bytes)
    counting = np.arange(words, dtype=np.uint64)
    return all(
        np.array_equal(blocks[there], counting + np.uint64(here * words))
        for here, there in zip(source, target, strict=True)
    )


def _say(replies: TextIO, words: dict[str, Any]) -> None:
    replies.write(json.dumps(words) + "\n")
