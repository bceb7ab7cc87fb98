from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.e2e_harness import Cli, Topology, clean_cli
from tests.engine.tiny import make_tiny_model


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """A command line whose deployments must be gone at the end of the test."""
    with clean_cli(tmp_path) as cli:
        yield cli


@pytest.fixture(scope="module")
def module_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A command line whose deployments serve the tests of a file, and must be gone at its end."""
    with clean_cli(tmp_path_factory.mktemp("module")) as cli:
        yield cli


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def pair(tiny_model: Path) -> Topology:
    """A topology of one prefill and one decode engine on the tiny model."""

    def topology(name: str = "pair", **changes: object) -> dict[str, object]:
        return {"name": name, "model": str(tiny_model), "prefill": 1, "decode": 1} | changes

    return topology
