"""These tests run on the event loop that the engine runs on."""

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest
import uvloop
from transfer_harness import LAYOUT

from engine.kv.pool import KVPool


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(params=os.environ.get("KV_TRANSPORTS", "ipc,tcp").split(","))
def transport(request: pytest.FixtureRequest) -> str:
    """Each transport that needs nothing of the machine. tests/rdma/ has the tests run over rdma, on its machine."""
    return request.param


@pytest.fixture
def pool() -> Iterator[KVPool]:
    """A pool of 64 blocks that can be handed out."""
    pool = KVPool(LAYOUT, 64, shared=True)
    yield pool
    pool.close()
