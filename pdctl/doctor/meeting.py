"""Has the hosts reach each other, on the ports that the plan gives their processes."""

import asyncio
import json
import random
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pdctl.agent.meet import STEP_S
from pdctl.doctor.facts import Facts, HostFacts
from pdctl.doctor.system import Meeting
from pdctl.errors import PdctlError
from pdctl.hosts.command import Feed
from pdctl.planning.probing import topology_host

MEETING_S = 10.0  # within which all hosts must have come
_OVERHEAD_S = 30.0  # for getting there, and the talk at the end

Doors = dict[int, tuple[str, str]]  # by port: the address to listen on, and the one at which it is reached


async def hold_meeting(facts: Facts, root: Path) -> Facts:
    """Add to the facts what each host saw of the others."""
    doors = {name: doors_of(facts, host) for name, host in facts.hosts.items() if _can_come(facts, host)}
    if len(doors) < 2:
        return facts
    token = secrets.token_hex(16)

    async def send(name: str) -> Meeting | PdctlError:
        host = topology_host(facts.topology, name)
        folder = host.folder_of(root / facts.topology.name)
        request = json.dumps(invitation(doors, name, token)).encode()
        timeout_s = MEETING_S + 2 * STEP_S + _OVERHEAD_S
        try:
            return Meeting.model_validate_json(await host.run("meet", folder, timeout_s=timeout_s, feed=Feed(request)))
        except PdctlError as error:
            return error

    answers = dict(zip(doors, await asyncio.gather(*map(send, doors)), strict=True))
    return replace(
        facts,
        meetings={name: answer for name, answer in answers.items() if isinstance(answer, Meeting)},
        not_met={name: answer for name, answer in answers.items() if isinstance(answer, PdctlError)},
    )


def invitation(doors: Mapping[str, Doors], name: str, token: str) -> dict[str, Any]:
    """What a host is told; see pdctl/agent/meet.py."""
    others = [other for other in doors if other != name]
    return {
        "token": token,
        "name": name,
        "listen": [(listen, port) for port, (listen, _) in doors[name].items()],
        "expect": others,
        "reach": [(other, reached, port) for other in others for port, (_, reached) in doors[other].items()],
        "seconds": MEETING_S,
    }


def doors_of(facts: Facts, host: HostFacts) -> Doors:
    """The ports of the processes there that are free; one that the kernel may give out stands for all others."""
    doors: Doors = {}
    processes = facts.processes_on(host.name)
    for process in processes:
        bind = facts.topology.router.bind if process.role == "router" else None
        free = process.given_ports - host.inventory.taken_ports.keys()
        doors |= dict.fromkeys(sorted(free), (bind or host.address, process.address))
    if not doors or any(0 in process.ports.values() for process in processes):
        doors[_any_port(host)] = (host.address, host.address)
    return doors


def _any_port(host: HostFacts) -> int:
    first, last = host.system.ports.ephemeral
    return random.choice([port for port in range(first, last + 1) if port not in host.inventory.taken_ports])


def _can_come(facts: Facts, host: HostFacts) -> bool:
    """Whether it has an address that is its own; check_addresses tells of one that has not."""
    netdev = host.netdev
    addresses = [other.address for other in facts.hosts.values()]
    return netdev is not None and netdev.name != "lo" and addresses.count(host.address) == 1
