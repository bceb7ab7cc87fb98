"""Asks each host what the checks need to know."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pdctl.doctor.facts import HostFacts, groups, used_hosts
from pdctl.doctor.system import System
from pdctl.errors import PdctlError
from pdctl.hosts.wheel import own_wheel
from pdctl.planning.inventory import Inventory
from pdctl.planning.probing import probe_host, topology_host
from pdctl.profiles import Profile
from pdctl.topology.models import Host, Topology

LOOK_TIMEOUT_S = 60.0  # with a model's files to be read, on a disk that may be busy
_HUB_CACHE, _HUB_HOME = "HF_HUB_CACHE", "HF_HOME"


class Question(NamedTuple):
    """What is asked, and where the files of deployments are kept on this machine."""

    topology: Topology
    profile: Profile
    root: Path
    reads_model: bool


Answers = tuple[dict[str, HostFacts], dict[str, PdctlError]]  # and why the other hosts gave none


async def ask_all(question: Question, ports: Mapping[str, list[int]]) -> Answers:
    """Ask all used hosts at once for their inventories and systems; `ports`: those to be looked at."""
    names = used_hosts(question.topology)
    return _sorted(names, await asyncio.gather(*(_ask(question, name, ports.get(name, [])) for name in names)))


async def ask_systems(question: Question, inventories: Mapping[str, Inventory]) -> Answers:
    """Ask hosts whose inventories are known for the rest."""

    async def ask(name: str) -> HostFacts | PdctlError:
        try:
            return await _look(question, name, inventories[name])
        except PdctlError as error:
            return error

    return _sorted(inventories, await asyncio.gather(*map(ask, inventories)))


def _sorted(names: Iterable[str], answers: list[HostFacts | PdctlError]) -> Answers:
    by_host = dict(zip(names, answers, strict=True))
    known = {name: answer for name, answer in by_host.items() if isinstance(answer, HostFacts)}
    return known, {name: answer for name, answer in by_host.items() if isinstance(answer, PdctlError)}


async def _ask(question: Question, name: str, ports: list[int]) -> HostFacts | PdctlError:
    """Both at once; what fails first ends the other."""
    failed: list[PdctlError] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            probing = tasks.create_task(_probe(question, name, ports))
            looking = tasks.create_task(_examine(question, name))
    except* PdctlError as group:
        failed = [error for error in group.exceptions if isinstance(error, PdctlError)]
    if failed:
        return failed[0]
    return _facts(question, name, probing.result(), *looking.result())


async def _look(question: Question, name: str, inventory: Inventory) -> HostFacts:
    return _facts(question, name, inventory, *await _examine(question, name))


def _facts(
    question: Question, name: str, inventory: Inventory, system: System, asked: tuple[float, float]
) -> HostFacts:
    host = question.topology.hosts[name]
    return HostFacts(name, host.ssh, inventory, system, asked, host.address)


async def _probe(question: Question, name: str, ports: list[int]) -> Inventory:
    packages = question.profile.packages.names if question.profile.packages else ()
    return await probe_host(question.topology, name, question.root, ports, packages)


async def _examine(question: Question, name: str) -> tuple[System, tuple[float, float]]:
    host = topology_host(question.topology, name)
    folder = host.folder_of(question.root / question.topology.name)
    asked = time.time()
    answer = await host.run("examine", folder, *_arguments(question, name), timeout_s=LOOK_TIMEOUT_S)
    return System.model_validate_json(answer), (asked, time.time())


def _arguments(question: Question, name: str) -> list[str]:
    topology = question.topology
    host, on_host = topology.hosts[name], [group for group in groups(topology) if name in group.nodes]
    arguments = ["--python", host.python] if host.python else []
    arguments += ["--environment", environment] if (environment := _environment(host)) else []
    arguments += ["--address", host.address] if host.address else []
    workdirs = {group.workdir for group in on_host} | {host.workdir}
    arguments += ["--workdirs", *sorted(filter(None, workdirs))]
    if not on_host:
        return arguments
    arguments += ["--model", topology.model, *(["--read-model"] if question.reads_model else [])]
    hubs = [hub for group in on_host if (hub := _hub({**host.env, **group.env}))]
    return arguments + (["--hub", hubs[0]] if hubs else [])


def _environment(host: Host) -> str:
    """Whose interpreter has the builtin engine where none is given."""
    return own_wheel().environment if host.ssh else ""


def _hub(env: Mapping[str, str]) -> str | None:
    """Where an engine keeps the hub's models, if its group says so."""
    return env.get(_HUB_CACHE) or (f"{env[_HUB_HOME]}/hub" if _HUB_HOME in env else None)
