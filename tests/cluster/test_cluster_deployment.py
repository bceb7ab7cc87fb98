"""Deployments over several hosts."""

from pathlib import Path

import pytest

from tests.cluster.cluster_host import HOME, Spec
from tests.cluster.cluster_serving import ask, serving, topology
from tests.cluster.conftest import StartCluster
from tests.e2e.e2e_harness import Cli
from tests.engine.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "run").mkdir(mode=0o700)
    return Cli(tmp_path)


def test_prefill_and_decode_on_two_hosts(start_cluster: StartCluster, cli: Cli, model: Path):
    """The second is reached through a third alone; KV goes straight from the first to the second."""
    cluster = start_cluster(shared=[model], jump=Spec(), first=Spec(), second=Spec(via="jump"))
    content = topology(model, cluster, ["first"], ["second"], router={"host": "first", "port": 0})
    with serving(cli, content) as url:
        assert url.startswith(f"http://{cluster['first'].address}:")
        assert ask(url).json()["usage"]["completion_tokens"] == 8
        status = cli.status("--name", "far")
        where = {process["name"]: process["host"] for process in status["processes"]}
        assert where == {"router": "first", "prefill-0": "first", "decode-0": "second"}
        decode = status["processes"][2]["load"]
        assert decode["transports"] == ["tcp"]
        assert decode["transferred_tokens"] > 0
        assert not decode["locally_computed_tokens"]
        logs = cli("logs", "--name", "far", "--tail", "3").stdout
        assert "decode-0" in logs
    assert "pdctl" not in str(list(cluster["jump"].path(HOME).rglob("*"))), "the jump host needs nothing of ours"
    cluster.check_gone()
