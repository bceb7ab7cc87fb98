"""Mooncake's transfer engine over TCP, with one call a push. Runs in the peers' environment."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mooncake.engine import TransferEngine  # type: ignore[import-not-found]

from benchmarks.transfer.side import Memory, Opened, Push, new_memory, serve

_HOST = "127.0.0.1"


@contextmanager
def _target() -> Iterator[Opened]:
    memory = new_memory()
    engine = _engine(memory)
    yield Opened(memory, json.dumps([f"{_HOST}:{engine.get_rpc_port()}", memory.ctypes.data]))


@contextmanager
def _source(address: str) -> Iterator[tuple[Memory, Push]]:
    peer, there = json.loads(address)
    memory = new_memory()
    engine, here = _engine(memory), memory.ctypes.data

    def push(source: list[int], target: list[int], block_bytes: int) -> float:
        began = time.perf_counter()
        places = [here + block * block_bytes for block in source]
        peer_places = [there + block * block_bytes for block in target]
        if engine.batch_transfer_sync_write(peer, places, peer_places, [block_bytes] * len(places)):
            raise RuntimeError("a transfer has failed")
        return time.perf_counter() - began

    yield memory, push


def _engine(memory: Memory) -> TransferEngine:
    engine = TransferEngine()
    if engine.initialize(_HOST, "P2PHANDSHAKE", "tcp", ""):
        raise RuntimeError("it cannot be initialised")
    if engine.register_memory(memory.ctypes.data, memory.nbytes):
        raise RuntimeError("the memory cannot be registered")
    return engine


if __name__ == "__main__":
    serve(_target, _source)
