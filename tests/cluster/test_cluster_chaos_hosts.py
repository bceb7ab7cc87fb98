"""Hosts that lose what runs on them, one after the other, while the others serve: each test has one of its own.

At the end, `pdctl down` has to find an end for all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.cluster_chaos import agents, ask_light, asked_all_the_while, kill, light, look_until, states
from tests.cluster.cluster_host import Spec
from tests.cluster.cluster_serving import serving
from tests.cluster.namespaces import until
from tests.e2e.e2e_harness import Cli

HOSTS = ("stays", "agent", "guardian", "both", "reboot")


@dataclass(frozen=True)
class Deployed:
    """A deployment of light engines on all hosts."""

    cluster: Cluster
    cli: Cli
    url: str

    def is_gone(self, host: str) -> bool:
        return not [process for process in self.cluster.processes() if process.host == host]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    cli = Cli(tmp_path_factory.mktemp("chaos"))
    (cli.folder / "run").mkdir(mode=0o700)
    with Cluster({name: Spec() for name in HOSTS}, cli.folder / "cluster") as cluster:
        with serving(cli, light(cli, HOSTS)) as url:
            yield Deployed(cluster, cli, url)
        cluster.check_gone()


@pytest.mark.parametrize(("host", "killed"), [("agent", [1]), ("guardian", [0]), ("both", [0, 1])])
def test_what_an_agent_runs_ends_with_it(at: Deployed, host: str, killed: list[int]):
    with asked_all_the_while(at.url):
        both = agents(at.cluster, host)
        kill(*(both[index] for index in killed))
        status = look_until(at.cli, lambda status: set(states(status, host).values()) == {"exited"}, "its end")
        assert status["state"] == "degraded"
        assert f"the agent on host {host}" in str(status["reason"]) or f", {host}" in str(status["reason"])
        until(lambda: at.is_gone(host), f"the end of all on {host}")
    assert states(status, "stays") == {"router": "ready", "mixed-0": "ready"}


def test_a_host_that_boots_again_runs_nothing(at: Deployed):
    with asked_all_the_while(at.url):
        at.cluster["reboot"].power_off()
        status = look_until(at.cli, lambda status: set(states(status, "reboot").values()) == {"unreachable"}, "its end")
        assert "reboot" in str(status["reason"])
        at.cluster["reboot"].power_on()
        at.cluster["reboot"].wait_until_up()
        look_until(at.cli, lambda status: set(states(status, "reboot").values()) == {"exited"}, "the truth")
    assert at.is_gone("reboot")
    assert ask_light(at.url)
