"""Hosts to which something happens, one after the other, while the others serve: each test has one of its own.

At the end, `pdctl down` has to find an end for all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.cluster_chaos import (
    Status,
    agents,
    asked_all_the_while,
    kill,
    light,
    look_until,
    process_of,
    states,
)
from tests.cluster.cluster_host import Spec
from tests.cluster.cluster_serving import UP_S, serving
from tests.cluster.namespaces import until
from tests.e2e.e2e_harness import Cli

HOSTS = ("stays", "agent", "guardian", "both", "reboot", "full", "late", "early")
CLOCKS = {"late": Spec(clock_s=-5000), "early": Spec(clock_s=5000)}
TALKS = {"setup": "while sleep 0.5; do printf '%08000d\\n' 0; done &"}  # beside the engine, as part of its processes


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
    engines = [{"host": host} | (TALKS if host in ("full", *CLOCKS) else {}) for host in HOSTS]
    with Cluster({name: CLOCKS.get(name, Spec()) for name in HOSTS}, cli.folder / "cluster") as cluster:
        with serving(cli, light(cli, HOSTS, mixed=engines)) as url:
            yield Deployed(cluster, cli, url)
        cluster.check_gone()


@pytest.mark.parametrize(("host", "killed"), [("agent", [1]), ("guardian", [0]), ("both", [0, 1])])
def test_what_an_agent_runs_ends_with_it(at: Deployed, host: str, killed: list[int]):
    with asked_all_the_while(at.url):
        both = agents(at.cluster, host)
        kill(*(both[index] for index in killed))
        status = look_until(at.cli, lambda status: set(states(status, host).values()) == {"exited"}, "its end")
        assert status["state"] == "degraded"
        assert "the agent on host " in str(status["reason"])
        assert host in str(status["reason"])
        until(lambda: at.is_gone(host), f"the end of all on {host}")
    assert set(states(status, "stays").values()) == {"ready"}


def test_a_host_that_boots_again_runs_nothing(at: Deployed):
    with asked_all_the_while(at.url):
        at.cluster["reboot"].power_off()
        status = look_until(at.cli, lambda status: set(states(status, "reboot").values()) == {"unreachable"}, "its end")
        assert "host reboot cannot be reached" in str(status["reason"])
        at.cluster["reboot"].power_on()
        at.cluster["reboot"].wait_until_up()
        look_until(at.cli, lambda status: set(states(status, "reboot").values()) == {"exited"}, "the truth")
    assert at.is_gone("reboot")


def test_a_disk_that_fills_up_keeps_nobody_from_serving(at: Deployed):
    """It is full until the end, and keeps nobody from that either."""
    with asked_all_the_while(at.url):
        at.cluster["full"].fill_disk()
        status = look_until(at.cli, lambda status: "No space left" in str(of(status, "full")["warning"]), "a warning")
        assert of(status, "full")["state"] == "ready"
        kill(process_of(at.cluster, status, str(of(status, "full")["name"])))
        look_until(at.cli, lambda status: was_restarted(status, "full"), "a restart")


@pytest.mark.parametrize(("host", "then_s"), [("late", 90_000), ("early", -90_000)])
def test_a_clock_that_is_wrong_and_jumps_changes_nothing(at: Deployed, host: str, then_s: float):
    before = of(at.cli.status(), host)
    name = str(before["name"])
    until(lambda: f"{name} | 0000" in at.cli("logs", name, "--tail", "1").stdout, "a line")
    with asked_all_the_while(at.url):
        at.cluster[host].shift_clock(then_s)
        kill(process_of(at.cluster, at.cli.status(), name))
        after = look_until(at.cli, lambda status: was_restarted(status, host), "a restart")
    assert of(after, host)["uptime_s"] < UP_S
    assert f"{name} was started again (1): it was killed by SIGKILL" in at.cli("logs", name).stdout


def of(status: Status, host: str) -> dict[str, object]:
    """The engine of a host."""
    (found,) = [one for one in status["processes"] if one["host"] == host and one["role"] == "mixed"]
    return found


def was_restarted(status: Status, host: str) -> bool:
    return (of(status, host)["restarts"], of(status, host)["state"]) == (1, "ready")
