"""Deployments over several hosts."""

import os
import signal
import subprocess
from pathlib import Path

from tests.cluster.cluster_chaos import light
from tests.cluster.cluster_host import HOME, Spec
from tests.cluster.cluster_serving import ask, serving, topology
from tests.cluster.conftest import StartCluster
from tests.e2e.e2e_harness import PDCTL, Cli, wait_for_line
from tests.processes import Spawned


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


def test_ctrl_c_in_the_foreground_ends_all_on_all_hosts(start_cluster: StartCluster, cli: Cli):
    """A terminal sends it to pdctl and to every ssh that it has started."""
    cluster = start_cluster(a=Spec(), b=Spec())
    command = [PDCTL, "up", cli.write(light(cli, ["a", "b"]))]
    pipe = subprocess.PIPE
    with Spawned(
        command, env=cli.environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as up:
        wait_for_line(up, "light is ready at")
        os.killpg(up.pid, signal.SIGINT)
        said, _ = up.communicate(timeout=60)
    assert up.returncode == 0, said
    assert said.rstrip().endswith("light is down: nothing of it runs")
    cluster.check_gone()
