"""What one thread can do: the C library's memcpy, block by block, from a memory file into one of another process."""

import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.transfer.side import POOL_BYTES, Memory, Opened, Push, serve

_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcpy.restype = ctypes.c_void_p


@contextmanager
def _target() -> Iterator[Opened]:
    fd, memory = _memory_file()
    yield Opened(memory, f"/proc/{os.getpid()}/fd/{fd}")


@contextmanager
def _source(address: str) -> Iterator[tuple[Memory, Push]]:
    _, own = _memory_file()
    fd = os.open(address, os.O_RDWR)
    target = _map(fd)
    here, there = own.ctypes.data, target.ctypes.data

    def push(source: list[int], to: list[int], block_bytes: int) -> float:
        began = time.perf_counter()
        for one, other in zip(source, to, strict=True):
            _memcpy(there + other * block_bytes, here + one * block_bytes, block_bytes)
        return time.perf_counter() - began

    yield own, push


def _memory_file() -> tuple[int, Memory]:
    fd = os.memfd_create("memcpy")
    os.ftruncate(fd, POOL_BYTES)
    memory = _map(fd)
    memory[:] = 1
    return fd, memory


def _map(fd: int) -> Memory:
    memory: Memory = np.frombuffer(mmap.mmap(fd, POOL_BYTES), np.uint8)
    return memory


if __name__ == "__main__":
    serve(_target, _source)
