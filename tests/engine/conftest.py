from collections.abc import Iterator

import pytest
import torch

from tests.engine.served_core import TIMEOUT_S, Serve, Served
from tests.engine.tiny import make_tiny_model

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny random model's folder, shared by all tests: do not change it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts cores, which end with the test."""
    started: list[Served] = []

    def start(**options: int) -> Served:
        served = Served(**options)
        served.core.start()
        started.append(served)
        return served

    yield start
    for served in started:
        if served.runner.gate is not None:
            served.runner.gate.release(1000)
        served.core.stop(TIMEOUT_S)
