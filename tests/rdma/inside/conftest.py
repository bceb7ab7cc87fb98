"""Runs on the machine of tests/rdma/softroce.sh only."""

import multiprocessing
from multiprocessing.forkserver import ensure_running

import pytest

from engine.transfer.transports.rdma.pyverbs_package import make_importable

make_importable()

_ENGINES = multiprocessing.get_context("forkserver")
_ENGINES.set_forkserver_preload(
    [
        "engine.server.process",
        "engine.server.startup",
        "engine.server.backend",
        "engine.loading.chat_template",
        "engine.loading.folder_tokenizer",
        "engine.loading.model",
        "engine.loading.safetensors",
        "engine.runner.runner",
    ]
)


@pytest.fixture(scope="session", autouse=True)
def engine_processes():
    """Makes processes that have all of an engine loaded: torch alone takes half a minute here, beside other tests."""
    ensure_running()
    return _ENGINES
