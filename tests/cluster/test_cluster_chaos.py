"""Hosts that are cut off and engines that are killed under a steady load: no client notices.

In float32, so that an answer does not depend on what is computed beside it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.cluster_chaos import Status, kill, look_until, pids, process_of, states
from tests.cluster.cluster_host import Spec
from tests.cluster.cluster_serving import ask, serving, topology
from tests.cluster.namespaces import until
from tests.e2e.chaos_load import Known, Load, learn, mixed_requests, steady_load
from tests.e2e.e2e_harness import Cli
from tests.engine.tiny import make_tiny_model

pytestmark = pytest.mark.chaos

OUT_S = 30.0
EXACT = {"args": {"dtype": "float32"}}
CLIENTS, PAUSE_S = 2, 0.5  # a load that leaves room for all that happens beside it


@dataclass(frozen=True)
class Deployed:
    """Two pairs of engines on four hosts, with the router on the first."""

    cluster: Cluster
    cli: Cli
    url: str
    known: list[Known]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    cli = Cli(tmp_path_factory.mktemp("chaos"))
    (cli.folder / "run").mkdir(mode=0o700)
    model = make_tiny_model(cli.folder / "tiny")
    with Cluster({name: Spec() for name in "abcd"}, cli.folder / "cluster", shared=[model]) as cluster:
        content = topology(model, cluster, [], [], router={"host": "a", "port": 0})
        content |= {"prefill": [{"host": host} | EXACT for host in "ab"]}
        content |= {"decode": [{"host": host} | EXACT for host in "cd"]}
        with serving(cli, content) as url:
            yield Deployed(cluster, cli, url, learn(url, mixed_requests()))
        cluster.check_gone()


def test_every_pair_serves(at: Deployed):
    answers = [ask(at.url, f"The quick brown fox number {number}") for number in range(8)]
    assert {answer.status_code for answer in answers} == {200}
    pairs = {(answer.headers["X-Router-Prefill-URL"], answer.headers["X-Router-Decode-URL"]) for answer in answers}
    hosts = {url.split("//")[1].split(":")[0] for pair in pairs for url in pair}
    assert hosts == {host.address for host in at.cluster}


def test_a_host_that_is_cut_off_for_30_s_goes_on_as_it_was(at: Deployed):
    before = at.cli.status()
    with steady_load(at.url, at.known, CLIENTS, PAUSE_S) as load:
        at.cluster["d"].link_down()
        cut = time.monotonic()
        status = look_until(at.cli, lambda status: states(status, "d") == {"decode-1": "unreachable"}, "the truth")
        assert status["state"] == "degraded"
        assert "host d cannot be reached" in str(status["reason"])
        assert {state for name, state in states(status).items() if name != "decode-1"} == {"ready"}
        load.turn_over()
        until(lambda: time.monotonic() > cut + OUT_S, "the cable's time", OUT_S + 1)
        at.cluster["d"].link_up()
        after = look_until(at.cli, lambda status: status["state"] == "ready", "its return")
        assert pids(after) == pids(before)
        takes_traffic(at, load, after, "decode-1")


def test_engines_that_are_killed_come_back_and_take_traffic(at: Deployed):
    before = at.cli.status()
    killed = ["prefill-0", "decode-1"]

    def were_restarted(status: Status) -> bool:
        return not any(pids(status)[name] == pids(before)[name] for name in killed)

    with steady_load(at.url, at.known, CLIENTS, PAUSE_S) as load:
        kill(*(process_of(at.cluster, before, name) for name in killed))
        load.turn_over()
        after = look_until(at.cli, lambda status: status["state"] == "ready" and were_restarted(status), "their return")
        for name in killed:
            takes_traffic(at, load, after, name)
    assert {name: pid for name, pid in pids(after).items() if name not in killed} == {
        name: pid for name, pid in pids(before).items() if name not in killed
    }


def takes_traffic(at: Deployed, load: Load, since: Status, name: str) -> None:
    """Wait until an engine does more than it had done."""
    done = work(since, name)
    look_until(at.cli, lambda status: work(status, name) > done or bool(load.failures), f"traffic of {name}")
    assert not load.failures, load.failures


def work(status: Status, name: str) -> float:
    """The tokens that an engine has computed or generated."""
    (load,) = [one["load"] for one in status["processes"] if one["name"] == name]
    return (load["prompt_tokens"] or 0) + (load["generated_tokens"] or 0)
