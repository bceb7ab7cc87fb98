"""Agents on hosts that have nothing of ours, reached by ssh as it really is."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from pdctl.errors import HostUnreachableError, PdctlError
from pdctl.hosts import host as hosts
from pdctl.hosts.client import AgentClient, AgentGoneError
from pdctl.hosts.host import Host, HostError
from pdctl.hosts.open import open_host
from tests.agent.agent_harness import ESCAPING, Events, all_escaped, new_run_id
from tests.cluster.cluster import LAUNCHER, Cluster
from tests.cluster.cluster_host import HOME, PYTHON, Spec
from tests.cluster.conftest import StartCluster
from tests.cluster.namespaces import until

DEPLOYMENT = Path("/state/deployments/one")  # on the launcher


def _old_python() -> Path:
    """The oldest Python that will do, if it is installed beside ours, else ours."""
    beside = sorted(Path(sys.base_prefix).parent.glob("3.9.*/bin/python3.9"))
    return beside[0] if beside else PYTHON


def of(host: Host) -> Path:
    """The folder of its agent."""
    return host.folder_of(DEPLOYMENT)


@asynccontextmanager
async def connected(host: Host) -> AsyncIterator[AgentClient]:
    client = await host.connect(of(host))
    try:
        yield client
    finally:
        await client.close()


async def test_python_is_all_that_a_host_needs_even_behind_another(start_cluster: StartCluster):
    python = _old_python()
    cluster = start_cluster(jump=Spec(), inner=Spec(via="jump", python=python))
    inner, run_id = open_host("inner", "inner"), new_run_id()
    inventory = await inner.probe(DEPLOYMENT, [22, 8000])
    assert (inventory["hostname"], inventory["address"]) == ("inner", cluster["inner"].address)
    assert list(inventory["taken_ports"]) == ["22"]
    (archive,) = cluster["inner"].path(HOME / ".cache" / "pdctl").glob("agent-*.pyz")
    shipped = archive.stat()
    await inner.start_agent(of(inner), run_id)
    assert (archive.stat().st_ino, archive.stat().st_mtime) == (shipped.st_ino, shipped.st_mtime), "sent again"
    async with connected(inner) as client:
        hello = await client.call("hello")
        assert (hello["run_id"], hello["python"]) == (run_id, cluster["inner"].run(python, "-V").split()[1])
        await client.call("start", name="sleeper", argv=["sleep", "1000"], env={})
        until(lambda: ("inner", "sleep 1000") in [(p.host, p.command) for p in cluster.processes()], "its start")
        await client.call("shutdown")
    cluster.check_gone()


async def test_an_agent_outlives_every_connection_and_serves_several(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec())
    host = open_host("a", "a")
    await host.start_agent(of(host), new_run_id())
    assert [process.host for process in cluster.processes()] == ["a", "a"], "guardian and agent, and no ssh"
    async with connected(host) as second:
        async with connected(host) as first:
            await first.call("subscribe", logs=True)
            await second.call("start", name="sayer", argv=["sh", "-c", "echo said; exec sleep 1000"], env={})
            await Events(first).until_line("said")
        pid = (await second.call("hello"))["pid"]
    assert [line.text for line in await host.read_logs(of(host), ["sayer"], 10)] == ["said"]
    async with connected(host) as again:
        assert (await again.call("hello"))["pid"] == pid
        assert [process["name"] for process in await again.call("list")] == ["sayer"]


async def test_of_two_agents_that_are_started_at_once_one_serves(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec())
    host, run_id = open_host("a", "a"), new_run_id()
    starts = [host.start_agent(of(host), run_id) for _ in range(2)]
    failed = [result for result in await asyncio.gather(*starts, return_exceptions=True) if result is not None]
    assert [type(error) for error in failed] == [HostError]
    assert "host a: cannot serve: another agent serves" in str(failed[0])
    assert len(cluster.processes()) == 2, "a guardian and its agent"


async def test_a_link_that_is_down_freezes_nothing_and_the_agent_goes_on(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
):
    cluster = start_cluster(a=Spec(), b=Spec())
    a, b = open_host("a", "a"), open_host("b", "b")
    await asyncio.gather(*(host.start_agent(of(host), new_run_id()) for host in (a, b)))
    async with connected(b) as to_b:
        async with connected(a) as to_a:
            pid = (await to_a.call("hello"))["pid"]
            cluster["a"].link_down()
            monkeypatch.setattr(hosts, "CONNECT_TIMEOUT_S", 2.0)
            waiting = asyncio.gather(
                _takes(to_a.call("hello", timeout_s=1), AgentGoneError, "on host a did not answer 'hello' in 1 s"),
                _takes(a.connect(of(a)), HostUnreachableError, "host a: `ssh a`: .*(timed out|No route to host)"),
            )
            begin = monotonic()
            await to_b.call("hello")
            assert monotonic() - begin < 1, "the other host has waited too"
            assert max(await waiting) < 6
            begin = monotonic()
        assert monotonic() - begin < 4, "for the end of a connection"
        assert not [p for p in cluster.processes() if p.host == LAUNCHER and " -- a " in p.command]
    cluster["a"].link_up()
    async with connected(a) as again:
        assert (await again.call("hello"))["pid"] == pid


async def test_a_host_that_hangs_is_unreachable(start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch):
    cluster = start_cluster(a=Spec())
    host = open_host("a", "a")
    await host.start_agent(of(host), new_run_id())
    cluster["a"].freeze()
    monkeypatch.setattr(hosts, "CONNECT_TIMEOUT_S", 1.0)
    assert await _takes(host.connect(of(host)), HostUnreachableError, "^host a: ") < 4
    cluster["a"].thaw()
    monkeypatch.undo()
    async with connected(host):
        pass


async def test_after_a_reboot_there_is_no_agent_until_another_starts(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec())
    host, run_id = open_host("a", "a"), new_run_id()
    await host.start_agent(of(host), run_id)
    async with connected(host) as client:
        await client.call("start", name="sleeper", argv=["sleep", "1000"], env={})
    cluster["a"].reboot()
    await _takes(host.connect(of(host)), AgentGoneError, "no agent runs on host a")
    assert await host.sweep(of(host), run_id, 0, force=False) == ([], [], False)
    await host.start_agent(of(host), run_id)
    async with connected(host) as again:
        assert await again.call("list") == []


async def test_a_sweep_ends_what_agent_and_guardian_left_when_they_were_killed(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec())
    host, run_id = open_host("a", "a"), new_run_id()
    await host.start_agent(of(host), run_id)
    async with connected(host) as client:
        await client.call("subscribe", logs=True)
        await client.call("start", name="escaping", argv=["python3", "-c", f"{ESCAPING}\ntime.sleep(1000)"], env={})
        escaped = set(await all_escaped(Events(client)))
    until(lambda: escaped <= _recorded(cluster), "a sample that has them")
    assert (await host.sweep(of(host), run_id, 0, force=False)).agent_lives
    agents = [str(process.inner_pid) for process in cluster.processes() if "serve" in process.command]
    stopped_first = (
        f"kill -STOP {' '.join(agents)} && kill -KILL {' '.join(agents)}"  # so that neither can end the rest
    )
    cluster["a"].run("sh", "-c", stopped_first)
    until(lambda: not {int(pid) for pid in agents} & _inner_pids(cluster), "the end of both")
    assert escaped & _inner_pids(cluster), "nothing to sweep"
    swept = await host.sweep(of(host), run_id, 5, force=False)
    assert (swept.left, swept.agent_lives) == ([], False)
    cluster.check_gone()


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        (Spec(host_key="unknown"), HostUnreachableError, "host key is not known: .*accept-new"),
        (Spec(host_key="changed"), HostUnreachableError, "host key is not the one that is known: .*ssh-keygen -R"),
        (Spec(login="password"), HostUnreachableError, r"Permission denied .*: pdctl asks for no password: .*ssh-copy"),
        (Spec(python=None), PdctlError, r"no Python 3\.9 or newer .*python: \.\.\."),
    ],
)
async def test_a_host_that_cannot_be_used_is_refused_with_what_to_do(
    start_cluster: StartCluster, spec: Spec, error: type[Exception], says: str
):
    cluster = start_cluster(a=spec)
    host = open_host("a", "a")
    await _takes(host.probe(DEPLOYMENT, []), error, f"^host a: .*{says}")
    cluster.check_gone()


async def test_a_name_that_nobody_knows_is_unreachable(start_cluster: StartCluster):
    start_cluster()
    host = open_host("a", "nosuch.invalid")
    await _takes(host.probe(DEPLOYMENT, []), HostUnreachableError, "host a: `ssh nosuch.invalid`: .*resolve hostname")


async def test_a_new_host_key_is_kept_on_request(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec(host_key="unknown"))
    await open_host("a", "a", accept_new=True).probe(DEPLOYMENT, [])
    assert cluster["a"].address in cluster.known_hosts.read_text()
    await open_host("a", "a").probe(DEPLOYMENT, [])


async def test_a_python_that_is_not_on_the_path_is_named(start_cluster: StartCluster):
    start_cluster(a=Spec(python=None))
    await open_host("a", "a", python=str(PYTHON)).probe(DEPLOYMENT, [])


async def test_a_full_disk_takes_no_agent_and_says_so(start_cluster: StartCluster):
    cluster = start_cluster(a=Spec())
    host = open_host("a", "a")
    cluster["a"].fill_disk()
    await _takes(
        host.probe(DEPLOYMENT, []), PdctlError, r"^host a: the agent cannot be kept in ~/\.cache/pdctl: .*No sp"
    )
    cluster["a"].free_disk()
    await host.probe(DEPLOYMENT, [])


async def _takes(call: Awaitable[object], error: type[Exception], says: str) -> float:
    """How long it takes to fail, as it should."""
    begin = monotonic()
    with pytest.raises(error, match=says):
        await call
    return monotonic() - begin


def _recorded(cluster: Cluster) -> set[int]:
    file = cluster["a"].path(HOME / of(open_host("a", "a")).relative_to("~") / "pids.json")
    return {pid for pid, _ in json.loads(file.read_text())["pids"]} if file.exists() else set()


def _inner_pids(cluster: Cluster) -> set[int]:
    return {process.inner_pid for process in cluster.processes()}
