from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.cluster_host import Spec, missing

StartCluster = Callable[..., Cluster]


@pytest.fixture(scope="session", autouse=True)
def _hosts_can_be_made():
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[StartCluster]:
    """Starts a cluster that is gone at the end of the test, with all that ran on it; the test is its launcher."""
    with ExitStack() as stack:

        def start(shared: Sequence[Path] = (), **hosts: Spec) -> Cluster:
            return stack.enter_context(Cluster(hosts, tmp_path / "cluster", shared))

        yield start
