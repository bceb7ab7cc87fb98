"""NIXL with UCX over TCP: all blocks are prepared, a push picks some of them. Runs in the peers' environment."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nixl_cu12._api import nixl_agent, nixl_agent_config  # type: ignore[import-not-found]

from benchmarks.transfer.side import POOL_BYTES, Memory, Opened, Push, new_memory, serve


@contextmanager
def _target() -> Iterator[Opened]:
    memory = new_memory()
    agent = _agent("target", memory)
    yield Opened(memory, json.dumps([base64.b64encode(agent.get_agent_metadata()).decode(), memory.ctypes.data]))


@contextmanager
def _source(address: str) -> Iterator[tuple[Memory, Push]]:
    metadata, there = json.loads(address)
    memory = new_memory()
    agent = _agent("source", memory)
    peer = agent.add_remote_agent(base64.b64decode(metadata))
    prepared: dict[int, tuple[Any, Any]] = {}  # by the size of a block

    def push(source: list[int], target: list[int], block_bytes: int) -> float:
        if block_bytes not in prepared:
            own = _descriptors(agent, memory.ctypes.data, block_bytes)
            theirs = _descriptors(agent, there, block_bytes)
            prepared[block_bytes] = agent.prep_xfer_dlist("", own), agent.prep_xfer_dlist(peer, theirs)
        began = time.perf_counter()
        own, theirs = prepared[block_bytes]
        transfer = agent.make_prepped_xfer("WRITE", own, source, theirs, target)
        state = agent.transfer(transfer)
        while state == "PROC":
            state = agent.check_xfer_state(transfer)
        seconds = time.perf_counter() - began
        agent.release_xfer_handle(transfer)
        if state != "DONE":
            raise RuntimeError(f"a transfer has ended as {state}")
        return seconds

    yield memory, push


def _agent(name: str, memory: Memory) -> nixl_agent:
    agent = nixl_agent(name, nixl_agent_config(backends=["UCX"]))
    agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")
    return agent


def _descriptors(agent: nixl_agent, base: int, block_bytes: int) -> object:
    return agent.get_xfer_descs([(base + place, block_bytes, 0) for place in range(0, POOL_BYTES, block_bytes)], "DRAM")


if __name__ == "__main__":
    serve(_target, _source)
