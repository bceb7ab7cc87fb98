from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.cluster_host import Spec, missing
from tests.e2e.e2e_harness import Cli
from tests.engine.tiny import make_tiny_model

StartCluster = Callable[..., Cluster]


@pytest.fixture(scope="session", autouse=True)
def _hosts_can_be_made():
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """A command line with a state folder of its own, on the launcher."""
    (tmp_path / "run").mkdir(mode=0o700)
    return Cli(tmp_path)


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[StartCluster]:
    """Starts a cluster that is gone at the end of the test, with all that ran on it; the test is its launcher."""
    with ExitStack() as stack:

        def start(shared: Sequence[Path] = (), **hosts: Spec) -> Cluster:
            return stack.enter_context(Cluster(hosts, tmp_path / "cluster", shared))

        yield start
