"""A deployment that comes to another host and leaves it again, under a steady load."""

from pathlib import Path

import pytest

from tests.cluster.cluster_host import Spec
from tests.cluster.cluster_serving import serving, topology
from tests.cluster.conftest import StartCluster
from tests.e2e.chaos_load import learn, mixed_requests, steady_load
from tests.e2e.e2e_harness import Cli

pytestmark = pytest.mark.chaos

ARGS = {"args": {"dtype": "float32", "max-model-len": 1024}}


def test_an_engine_comes_to_another_host_and_goes_again(start_cluster: StartCluster, cli: Cli, model: Path):
    """No request notices; where nothing runs any more, no agent is left."""
    cluster = start_cluster(shared=[model], first=Spec(), second=Spec())
    base = topology(model, cluster, ["first"], ["first"], router={"host": "first", "port": 0})
    base |= {"prefill": {"host": "first", **ARGS}, "decode": [{"host": "first", **ARGS}]}
    larger = base | {"decode": [{"host": "first", **ARGS}, {"host": "second", **ARGS}]}
    with serving(cli, base) as url:
        known = learn(url, mixed_requests()[:4])
        with steady_load(url, known, clients=1) as load:
            load.turn_over()
            for content, hosts in ((larger, ["first", "second"]), (base, ["first"])):
                up = cli("up", "-d", cli.write(content), timeout=180)
                assert up.returncode == 0, up.stdout + up.stderr
                processes = cli.status("--name", "far")["processes"]
                assert [process["host"] for process in processes if process["role"] == "decode"] == hosts
                load.turn_over()
        assert [process for process in cluster.processes() if process.host == "second"] == []
    cluster.check_gone()
