"""A deployment that one launcher has started is taken up by another, which knows its topology and nothing else."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdctl.errors import ExitCode
from tests.cluster.cluster import Cluster
from tests.cluster.cluster_chaos import TRUTH_S, light, look_until, pids, states
from tests.cluster.cluster_host import Spec
from tests.cluster.cluster_serving import serving
from tests.cluster.conftest import StartCluster
from tests.e2e.e2e_harness import Cli, wait_for_line


@pytest.fixture
def cluster(start_cluster: StartCluster) -> Iterator[Cluster]:
    """Two hosts, on which nothing may run after the test."""
    cluster = start_cluster(a=Spec(), b=Spec())
    yield cluster
    cluster.check_gone()


def launcher(folder: Path) -> Cli:
    """One with a state folder of its own."""
    (folder / "run").mkdir(mode=0o700, parents=True)
    return Cli(folder)


def test_another_launcher_takes_up_what_runs_and_ends_it(cluster: Cluster, tmp_path: Path):
    first, second = launcher(tmp_path / "first"), launcher(tmp_path / "second")
    content = light(first, ["a", "b"])
    with serving(first, content):
        topology = second.write(content)
        with second.spawn("attach", topology) as attached:
            wait_for_line(attached, "router")
            attached.send_signal(signal.SIGINT)
            assert attached.wait(TRUTH_S) == 0
        status = look_until(second, lambda status: status["state"] == "ready", "the truth")
        assert pids(status) == pids(first.status())
        assert status["endpoint"] == first.status()["endpoint"]
        assert second("down").returncode == 0
        cluster.check_gone()
        ended = look_until(first, lambda status: status["state"] == "down", "the truth")
        assert set(states(ended).values()) == {"exited"}


def test_where_nothing_runs_there_is_nothing_to_take_up(cluster: Cluster, tmp_path: Path):
    cli = launcher(tmp_path / "first")
    attached = cli("attach", cli.write(light(cli, ["a", "b"])))
    assert attached.returncode == ExitCode.NOT_FOUND
    assert "no deployment 'light' that this pdctl knows runs on the topology's hosts a, b" in attached.stderr


def test_what_is_not_known_is_not_denied(cluster: Cluster, tmp_path: Path):
    """The hosts are off: whether a deployment runs there cannot be said."""
    cli = launcher(tmp_path / "first")
    for host in cluster:
        host.power_off()
    attached = cli("attach", cli.write(light(cli, ["a", "b"])))
    assert attached.returncode == ExitCode.UNREACHABLE
    assert attached.stderr.startswith("error: host a: `ssh a`: ")
