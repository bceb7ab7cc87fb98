"""Our transports: tcp or ipc (shared memory), as the environment's TRANSPORT says. On the engines' event loop."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import torch
import uvloop

from benchmarks.transfer.side import POOL_BYTES, Memory, Opened, Push, serve
from engine.kv.pool import KVLayout, KVPool
from engine.transfer.base import Inlet, Target, Transport, Writer
from engine.transfer.blocks import Fit
from engine.transfer.doorway import Doorway
from engine.transfer.transports.shm import ShmTransport
from engine.transfer.transports.tcp import TcpTransport

_LAYOUT = KVLayout(num_kv_heads=1, num_layers=1, block_size=16, head_dim=1024, dtype=torch.bfloat16)
_INLETS = 4  # a source has a writer for each size of a block

_T = TypeVar("_T")


@contextmanager
def _target() -> Iterator[Opened]:
    with closing(_pool()) as pool, _Loop() as loop:
        inlets = loop.run(_open_inlets(pool))
        yield Opened(_bytes(pool), json.dumps([inlet.offer.hex() for inlet in inlets]))


@contextmanager
def _source(address: str) -> Iterator[tuple[Memory, Push]]:
    with closing(_pool()) as pool, _Loop() as loop:
        transport = _transport(pool, Doorway())
        offers = [bytes.fromhex(offer) for offer in json.loads(address)]
        writers: dict[int, Writer] = {}  # by the size of a block

        def push(source: list[int], target: list[int], block_bytes: int) -> float:
            if block_bytes not in writers:
                fit = Fit(block_bytes, block_bytes, 0, 0, block_bytes)
                every = range(POOL_BYTES // block_bytes)
                writer = loop.run(transport.connect(offers.pop(), Target("127.0.0.1", len(every), fit)))
                loop.run(writer.push(every, every))  # it maps the target anew, and each page faults once
                writers[block_bytes] = writer
            return loop.run(_timed(writers[block_bytes], source, target))

        yield _bytes(pool), push
        for writer in writers.values():
            loop.run(writer.close())


class _Loop:
    """An event loop in a thread of its own, while this one waits for what it is told."""

    def __enter__(self) -> "_Loop":
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _pool() -> KVPool:
    pool = KVPool(_LAYOUT, POOL_BYTES // _LAYOUT.block_bytes, shared=True)
    pool.tensor.fill_(1)
    return pool


def _bytes(pool: KVPool) -> Memory:
    array: Memory = pool.tensor.view(-1).view(torch.uint8).numpy()
    return array


def _transport(pool: KVPool, doorway: Doorway) -> Transport:
    return TcpTransport(pool, doorway) if os.environ["TRANSPORT"] == "tcp" else ShmTransport(pool)


async def _open_inlets(pool: KVPool) -> list[Inlet]:
    doorway = Doorway()
    await doorway.open("127.0.0.1", 0)
    transport = _transport(pool, doorway)
    return [transport.open_inlet() for _ in range(_INLETS)]


async def _timed(writer: Writer, source: list[int], target: list[int]) -> float:
    began = time.perf_counter()
    await writer.push(source, target)
    return time.perf_counter() - began


if __name__ == "__main__":
    serve(_target, _source)
