"""Launchers that are killed, that start the same at once, that are told to stop, and that find no room or no way."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from pdctl.errors import ExitCode
from tests.cluster.cluster import LAUNCHER, Cluster, Process
from tests.cluster.cluster_chaos import (
    TRUTH_S,
    ask_light,
    light,
    look_until,
    process_of,
    states,
    wait_for_process,
)
from tests.cluster.cluster_host import Spec
from tests.cluster.cluster_serving import UP_S, serving
from tests.cluster.conftest import StartCluster
from tests.cluster.namespaces import until
from tests.e2e.e2e_harness import Cli, wait_for_line
from tests.processes import Spawned

pytestmark = pytest.mark.chaos

SLOW = {"STANDIN_START_S": "100"}  # an engine that is not ready before the test is over


@pytest.fixture
def cluster(start_cluster: StartCluster) -> Iterator[Cluster]:
    """Two hosts, on which nothing may run after the test."""
    cluster = start_cluster(a=Spec(), b=Spec())
    yield cluster
    cluster.check_gone()


def slow(cli: Cli) -> dict[str, object]:
    """A deployment whose second engine takes its time."""
    return light(cli, ["a", "b"], mixed=[{"host": "a"}, {"host": "b", "env": SLOW}])


def lose(up: Spawned) -> None:
    """Kill a launcher, and nothing else of it: its connections end by themselves."""
    up.send_signal(signal.SIGKILL)
    up.communicate(timeout=TRUTH_S)


def send(process: Process, number: signal.Signals) -> None:
    """A signal, unless it has just ended: then its agent is there already, and `down` has to find it."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


def test_a_launcher_that_is_killed_while_it_looks_at_the_hosts_leaves_nothing(cluster: Cluster, cli: Cli):
    with cli.spawn("up", "-d", cli.write(slow(cli))) as up:
        wait_for_process(cluster, LAUNCHER, " probe --dir ")
        lose(up)
    assert cli("status").returncode == ExitCode.NOT_FOUND


def test_an_agent_that_comes_after_down_does_not_stay(cluster: Cluster, cli: Cli):
    """Its launcher is killed, but not the connection that starts it, which is slow."""
    with cli.spawn("up", "-d", cli.write(slow(cli))) as up:
        command = wait_for_process(cluster, LAUNCHER, "/hosts/b")
        send(command, signal.SIGSTOP)
        lose(up)
    down = cli("down")
    assert down.returncode == 0, down.stdout + down.stderr
    send(command, signal.SIGCONT)
    until(lambda: command not in cluster.processes(), "the end of the connection")


def test_a_launcher_that_is_killed_while_engines_start_is_cleared_away_by_down(cluster: Cluster, cli: Cli):
    with cli.spawn("up", "-d", cli.write(slow(cli))) as up:
        wait_for_line(up, "mixed-0 is ready")
        status = cli.status()
        assert status["state"] == "starting"
        assert states(status) == {"router": "ready", "mixed-0": "starting", "mixed-1": "starting"}
        lose(up)
    status = look_until(cli, lambda status: status["state"] == "degraded", "the truth")
    assert "the pdctl that was starting it has ended" in str(status["reason"])
    assert process_of(cluster, status, "mixed-1")
    refused = cli("up", "-d", cli.folder / "light.yaml")
    assert refused.returncode == ExitCode.DEGRADED
    assert cli("down").returncode == 0


@pytest.mark.parametrize("knows_the_agent", [False, True])
def test_a_disk_that_is_full_before_the_start_is_told(cluster: Cluster, cli: Cli, knows_the_agent: bool):
    path = cli.write(light(cli, ["a", "b"]))
    if knows_the_agent:
        assert cli("plan", path).returncode == 0
    cluster["b"].fill_disk()
    up = cli("up", "-d", path, timeout=UP_S)
    assert up.returncode == (ExitCode.UNFIT if knows_the_agent else ExitCode.FAILURE), up.stderr
    assert "host b: " in up.stderr
    assert ("it is full" if knows_the_agent else "No space left on device") in up.stderr
    assert cli("status").returncode == ExitCode.NOT_FOUND


def test_of_two_that_start_the_same_at_once_one_does_and_another_has_ports_of_its_own(cluster: Cluster, cli: Cli):
    one, other = (cli.write(light(cli, ["a", "b"], name=name)) for name in ("one", "other"))
    with ExitStack() as stack:
        ups = [stack.enter_context(cli.spawn("up", "-d", path)) for path in (one, one, other)]
        said = [up.communicate(timeout=UP_S)[1] for up in ups]
    assert ups[2].returncode == 0, said[2]
    assert {up.returncode for up in ups[:2]} == {0, ExitCode.STATE}, said
    assert "'one' is being started or stopped by " in said[0] + said[1]
    found = [cli.status("--name", name) for name in ("one", "other")]
    assert [status["state"] for status in found] == ["ready", "ready"]
    ports = [(process["host"], process["port"]) for status in found for process in status["processes"]]
    assert len(set(ports)) == len(ports) == 6
    assert [ask_light(str(status["endpoint"])) for status in found]
    assert cli("down", "--name", "one").returncode == 0
    assert cli.status("--name", "other")["state"] == "ready"
    assert cli("down", "--all").returncode == 0


def test_down_ends_a_launcher_that_is_starting(cluster: Cluster, cli: Cli):
    with cli.spawn("up", "-d", cli.write(slow(cli))) as up:
        wait_for_line(up, "mixed-0 is ready")
        down = cli("down")
        assert down.returncode == 0, down.stdout + down.stderr
        _, errors = up.communicate(timeout=TRUTH_S)
    assert up.returncode == ExitCode.INTERRUPTED, errors
    assert cli.status()["state"] == "down"


def test_down_finishes_later_what_it_does_not_reach_now(cluster: Cluster, cli: Cli):
    with serving(cli, light(cli, ["a", "b"])):
        before = cli.status()
        cluster["b"].link_down()
        down = cli("down")
        assert down.returncode == ExitCode.UNREACHABLE, down.stdout + down.stderr
        assert "host b" in down.stderr
        status = look_until(cli, lambda status: states(status, "b") == {"mixed-1": "unreachable"}, "the truth")
        assert status["state"] == "degraded"
        assert process_of(cluster, before, "mixed-1")
        assert not [process for process in cluster.processes() if process.host == "a"]
        cluster["b"].link_up()
    assert cli.status()["state"] == "down"
