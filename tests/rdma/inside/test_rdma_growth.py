"""Nothing is left behind by what has been."""

import asyncio
import ctypes
import gc
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
from rdma_pair import Memory, connected, decode_side, prefill_side, whole_blocks, within

FIT = whole_blocks(256)
BLOCKS = 512
_BLOCK = 64  # bytes, about, of one of Python's


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = _MallInfo


def held() -> dict[str, object]:
    """What this process holds of the kernel."""
    gc.collect()
    resources = subprocess.run(["rdma", "resource", "show"], capture_output=True, text=True, check=True).stdout
    return {"verbs": resources, "descriptors": len(list(Path("/proc/self/fd").iterdir()))}


def heap() -> int:
    """Bytes that are allocated and not freed: by malloc, which pyverbs uses, and by Python."""
    gc.collect()
    return int(libc.mallinfo2().uordblks) + _BLOCK * sys.getallocatedblocks()


async def test_ten_thousand_transfers_leave_nothing():
    before = held()
    async with connected(BLOCKS * FIT.nbytes, FIT) as pair:

        async def transfers(count: int) -> None:
            for _ in range(count // 100):
                places = random.sample(range(BLOCKS), 100)
                await within(asyncio.gather(*(pair.writer.push([place], [place]) for place in places)))

        await transfers(1000)
        while_connected, heap_then, memory_then = held(), heap(), psutil.Process().memory_info().rss
        await transfers(10_000)
        assert heap() - heap_then < 10_000 * 4
        assert psutil.Process().memory_info().rss - memory_then < 4 << 20
        assert held() == while_connected
        await within(pair.writer.push(range(BLOCKS), range(BLOCKS)))
        assert np.array_equal(pair.target.bytes, pair.source.bytes)
    assert held() == before


async def test_connections_leave_nothing():
    async def connect_and_part() -> None:
        async with decode_side(target) as inlet, prefill_side(source, inlet.offer, FIT, 4) as writer:
            await within(writer.push([0], [1]))

    source, target = Memory(4 * FIT.nbytes), Memory(4 * FIT.nbytes)
    await connect_and_part()
    before = held()
    for _ in range(5):
        await connect_and_part()
    assert held() == before
