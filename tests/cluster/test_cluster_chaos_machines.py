"""Hosts with a full disk, or with a clock that is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdctl.errors import ExitCode
from tests.cluster.cluster import Cluster
from tests.cluster.cluster_chaos import (
    ask_light,
    asked_all_the_while,
    kill,
    light,
    look_until,
    pids,
    process_of,
    states,
)
from tests.cluster.cluster_host import Spec
from tests.cluster.cluster_serving import UP_S, serving
from tests.cluster.conftest import StartCluster
from tests.cluster.namespaces import until
from tests.e2e.e2e_harness import Cli

TALKS = "while sleep 0.1; do printf '%04000d\\n' 0; done &"  # beside the engine, as part of its processes


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "run").mkdir(mode=0o700)
    return Cli(tmp_path)


@pytest.fixture
def cluster(start_cluster: StartCluster) -> Iterator[Cluster]:
    """Two hosts whose clocks can be set, on which nothing may run after the test."""
    cluster = start_cluster(a=Spec(clock_s=-5000), b=Spec(clock_s=5000))
    yield cluster
    cluster.check_gone()


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
    cluster.check_gone()
    cluster["b"].free_disk()
    with serving(cli, json.loads(path.read_text())) as url:
        assert ask_light(url)


def test_a_disk_that_fills_up_keeps_nobody_from_serving_nor_from_ending(cluster: Cluster, cli: Cli):
    with serving(cli, light(cli, ["a", "b"], mixed=[{"host": "a"}, {"host": "b", "setup": TALKS}])) as url:
        with asked_all_the_while(url):
            cluster["b"].fill_disk()
            status = look_until(cli, lambda status: "No space left" in str(warning(status, "mixed-1")), "a warning")
            assert status["state"] == "ready"
            kill(process_of(cluster, status, "mixed-1"))
            look_until(cli, lambda status: restarts(status, "mixed-1") == 1 and status["state"] == "ready", "a restart")
        down = cli("down")
        assert down.returncode == 0, down.stdout + down.stderr


def test_clocks_that_are_wrong_and_that_jump_change_nothing(cluster: Cluster, cli: Cli):
    talking = [{"host": host, "setup": TALKS} for host in ("a", "b")]
    with serving(cli, light(cli, ["a", "b"], mixed=talking)) as url:
        assert states(cli.status()) == {"router": "ready", "mixed-0": "ready", "mixed-1": "ready"}
        until(lambda: all(f"mixed-{number}" in cli("logs").stdout for number in (0, 1)), "lines of both hosts")
        before = cli.status()
        with asked_all_the_while(url):
            cluster["a"].shift_clock(90_000)
            cluster["b"].shift_clock(-90_000)
            kill(process_of(cluster, before, "mixed-1"))
            after = look_until(
                cli, lambda status: restarts(status, "mixed-1") == 1 and status["state"] == "ready", "a restart"
            )
        assert pids(after, "a") == pids(before, "a")
        assert max(one["uptime_s"] for one in after["processes"]) < UP_S
        assert "mixed-1 was started again (1): it was killed by SIGKILL" in cli("logs", "mixed-1").stdout


def warning(status: dict[str, object], name: str) -> str | None:
    return next(one["warning"] for one in status["processes"] if one["name"] == name)


def restarts(status: dict[str, object], name: str) -> int:
    return next(one["restarts"] for one in status["processes"] if one["name"] == name)
