"""Hosts that lose what runs on them, one after the other, while the others serve: each test has one of its own.

At the end, `pdctl down` has to find an end for all of them.
"""

from collections.abc import Iterator

import pytest

from tests.cluster.cluster_chaos import Deployed, agents, asked_all_the_while, deployed, kill, look_until, states
from tests.cluster.cluster_host import Spec
from tests.cluster.namespaces import until

pytestmark = pytest.mark.chaos

HOSTS = ("stays", "agent", "guardian", "both", "reboot")


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("chaos"), {name: Spec() for name in HOSTS}) as deployment:
        yield deployment


@pytest.mark.parametrize(("host", "killed"), [("agent", [1]), ("guardian", [0]), ("both", [0, 1])])
def test_what_an_agent_runs_ends_with_it(at: Deployed, host: str, killed: list[int]):
    with asked_all_the_while(at.url):
        both = agents(at.cluster, host)
        kill(*(both[index] for index in killed))
        status = look_until(at.cli, lambda status: set(states(status, host).values()) == {"exited"}, "its end")
        assert status["state"] == "degraded"
        assert "the agent on host " in str(status["reason"])
        assert host in str(status["reason"])
        until(lambda: is_gone(at, host), f"the end of all on {host}")
    assert set(states(status, "stays").values()) == {"ready"}


def test_a_host_that_boots_again_runs_nothing(at: Deployed):
    with asked_all_the_while(at.url):
        at.cluster["reboot"].power_off()
        status = look_until(at.cli, lambda status: set(states(status, "reboot").values()) == {"unreachable"}, "its end")
        assert "host reboot cannot be reached" in str(status["reason"])
        at.cluster["reboot"].power_on()
        at.cluster["reboot"].wait_until_up()
        look_until(at.cli, lambda status: set(states(status, "reboot").values()) == {"exited"}, "the truth")
    assert is_gone(at, "reboot")


def is_gone(at: Deployed, host: str) -> bool:
    return not [process for process in at.cluster.processes() if process.host == host]
