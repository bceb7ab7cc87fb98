"""What goes wrong on a cluster, what is then said of it, and a load that must not notice."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.cluster.cluster import Cluster, Process
from tests.cluster.cluster_host import Spec
from tests.cluster.cluster_serving import serving
from tests.cluster.namespaces import until
from tests.e2e.e2e_harness import Cli

# What is looked for again and again until it is so. An answer within 5 s is what is wanted of `pdctl status` on a
# machine that is free; two cores that run other tests, and all hosts of the cluster, get more.
TRUTH_S = 30.0
REQUEST_S = 60.0
_LOOK_S = 0.3  # a look costs nearly a second of a core
_STANDINS = Path(__file__).parents[1] / "standins"
_LIGHT = {
    "extends": "sglang",
    "name": "light",
    "description": "the stand-in of SGLang, which needs neither torch nor a GPU",
    "gpus": "none",
    "packages": None,
    "env": {
        "PYTHONPATH": str(_STANDINS),
        "CUDA_VISIBLE_DEVICES": "0",
        "CUDA_DEVICE_ORDER": None,
        "UCX_NET_DEVICES": None,
    },
    "readiness": {"timeout_s": 60},
    "stop_grace_s": 5,
}

Status = dict[str, object]


def light(cli: Cli, hosts: Sequence[str], name: str = "light", **changes: object) -> dict[str, object]:
    """A deployment of light engines, one on each of these hosts, each of which serves alone; the router on the first.

    Hosts that are named are reached by ssh.
    """
    profile = cli.folder / "light-profile.yaml"
    profile.write_text(json.dumps(_LIGHT))
    reached = {host: {"ssh": host, "python": sys.executable} for host in hosts}
    group = {"name": name, "model": "M", "engine": str(profile), "hosts": reached}
    return group | {"router": {"host": hosts[0], "port": 0}, "mixed": [{"host": host} for host in hosts]} | changes


@dataclass(frozen=True)
class Deployed:
    """A deployment of light engines that several tests share."""

    cluster: Cluster
    cli: Cli
    url: str


@contextmanager
def deployed(folder: Path, hosts: Mapping[str, Spec], **engine: dict[str, object]) -> Iterator[Deployed]:
    """Have a deployment of light engines on these hosts, which is gone at the end. ``engine``: keys of one, by host."""
    cli = Cli(folder)
    (folder / "run").mkdir(mode=0o700)
    engines = [{"host": host} | engine.get(host, {}) for host in hosts]
    with Cluster(hosts, folder / "cluster") as cluster:
        with serving(cli, light(cli, list(hosts), mixed=engines)) as url:
            yield Deployed(cluster, cli, url)
        cluster.check_gone()


def look_until(cli: Cli, condition: Callable[[Status], bool], what: str, *arguments: str) -> Status:
    """Look with `pdctl status` until the condition holds."""
    end = time.monotonic() + TRUTH_S
    while not condition(status := cli.status(*arguments)):
        assert time.monotonic() < end, f"waited {TRUTH_S:g} s for: {what}; {json.dumps(status, indent=1)}"
        time.sleep(_LOOK_S)
    return status


def states(status: Status, host: str | None = None) -> dict[str, str]:
    """The states of the processes (of a host), by name."""
    return {one["name"]: one["state"] for one in status["processes"] if host in (None, one["host"])}


def pids(status: Status, host: str | None = None) -> dict[str, int]:
    """Their pids, by name."""
    return {one["name"]: one["pid"] for one in status["processes"] if host in (None, one["host"])}


def agents(cluster: Cluster, host: str) -> list[Process]:
    """A host's guardian and agents, the guardian first."""
    found = [process for process in cluster.processes() if process.host == host and " serve --dir " in process.command]
    return sorted(found, key=lambda process: process.inner_pid)


def kill(*processes: Process) -> None:
    """SIGKILL, to all at once: none has the time to do anything about the end of another."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            os.kill(process.pid, number)


def process_of(cluster: Cluster, status: Status, name: str) -> Process:
    """What runs as this process of a deployment, found where it says that it is."""
    (told,) = [one for one in status["processes"] if one["name"] == name]
    (found,) = [one for one in cluster.processes() if (one.host, one.inner_pid) == (told["host"], told["pid"])]
    return found


def wait_for_process(cluster: Cluster, host: str, words: str) -> Process:
    """Wait until a host has a process whose command line has these words; the first."""
    found: list[Process] = []

    def is_there() -> bool:
        found.extend(process for process in cluster.processes() if process.host == host and words in process.command)
        return bool(found)

    until(is_there, f"{words!r} on {host}")
    return found[0]


def ask_light(url: str) -> str:
    """The answer to a request."""
    body = {"model": "M", "messages": [{"role": "user", "content": "What is a bridge?"}], "max_tokens": 4}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=REQUEST_S, trust_env=False, verify=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@contextmanager
def asked_all_the_while(url: str, pause_s: float = 0.2) -> Iterator[list[str]]:
    """Ask again and again within the block; gives the answers as they come. None may fail."""
    answers: list[str] = []
    failures: list[BaseException] = []
    ending = threading.Event()

    def ask() -> None:
        while not ending.wait(pause_s):
            try:
                answers.append(ask_light(url))
            except Exception as error:  # whatever it is, it is what a client gets
                failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        ending.set()
        thread.join(REQUEST_S)
    assert not failures, failures
    assert answers, "nothing was asked"
