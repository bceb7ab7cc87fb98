"""Whether the hosts reach each other: what they saw when they tried, on the planned ports."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from pdctl.doctor.facts import Facts, HostFacts
from pdctl.doctor.finding import Finding
from pdctl.doctor.system import Outcome
from pdctl.doctor.units import number_list

_COMMON_MTU = 1400  # gets through most networks that put packets into others


class _Way(NamedTuple):
    """From one host to another: the ports with the same outcome."""

    visitor: HostFacts
    host: HostFacts
    outcome: Outcome
    ports: tuple[int, ...]  # planned ones
    others: bool  # whether one was tried that stands for all that a process may choose itself

    def __str__(self) -> str:
        others = [f"one of {_ephemeral(self.host)}"] if self.others else []
        return ", ".join([number_list(self.ports)] * bool(self.ports) + others)

    @property
    def ranges(self) -> list[str]:
        """What is to be opened: 8000, 32768-60999."""
        return (number_list(self.ports).split(", ") if self.ports else []) + [_ephemeral(self.host)] * self.others


def check_connections(facts: Facts) -> Iterator[Finding]:
    """Every host reaches every other on its planned ports, with small packets and large ones."""
    for name, error in facts.not_met.items():
        text = f"whether it reaches the others is not known: {str(error).removeprefix(f'host {name}: ')}"
        yield Finding("error", name, "connections", text)
    ways = list(_ways(facts))
    for host in facts.hosts.values():
        yield from _deaf(facts, host)
        here = [way for way in ways if way.host is host]
        yield from (_met(way) for way in here if way.outcome == "met")
        yield from (_failed(way) for way in here if way.outcome != "met")


def _ways(facts: Facts) -> Iterator[_Way]:
    """A port that could not be listened on tells nothing of the way there."""
    deaf = {(name, port) for name, meeting in facts.meetings.items() for port, _ in meeting.deaf}
    seen: dict[tuple[str, str, Outcome], set[int]] = defaultdict(set)
    for visitor, meeting in facts.meetings.items():
        for to, port, outcome in meeting.visits:
            if to in facts.meetings and (to, port) not in deaf:
                seen[visitor, to, outcome].add(port)
    for (visitor, to, outcome), ports in seen.items():
        planned = tuple(sorted(ports & _planned(facts, to)))
        yield _Way(facts.hosts[visitor], facts.hosts[to], outcome, planned, len(planned) < len(ports))


def _deaf(facts: Facts, host: HostFacts) -> Iterator[Finding]:
    meeting = facts.meetings.get(host.name)
    for port, reason in meeting.deaf if meeting else ():
        if port in _planned(facts, host.name):
            text = f"cannot listen on port {port} of {host.address}: {reason}"
            yield Finding("error", host.name, "connections", text, f"ss -ltnp 'sport = :{port}'")


def _planned(facts: Facts, host: str) -> set[int]:
    return {port for process in facts.processes_on(host) for port in process.given_ports}


def _met(way: _Way) -> Finding:
    return Finding("ok", way.host.name, "connections", f"{way.visitor.name} reached it on {way}")


def _failed(way: _Way) -> Finding:
    why, remedy = _explained(way)
    text = f"{way.visitor.name} ({way.visitor.address}) does not reach {way.host.address} on {way}: {why}"
    return Finding("error", way.host.name, "connections", text, remedy)


def _explained(way: _Way) -> tuple[str, str]:
    visitor, host = way.visitor, way.host
    match way.outcome:
        case "silent":
            return "no answer, as behind a firewall", _opening(way)
        case "refused":
            return "refused, although it listened there: a firewall rejects it", _opening(way)
        case "no route":
            return "no route there", f"on {visitor.name}: ip route get {host.address}"
        case "unknown name":
            return "the name is not known there", f"on {visitor.name}: getent hosts {host.address}"
        case "stranger":
            return "something else answers", f"`hosts: {{{host.name}: {{address: ...}}}}` in the topology file"
        case "stuck there" | "stuck back" | "met":
            return _black_hole(host if way.outcome == "stuck back" else visitor)


def _black_hole(sender: HostFacts) -> tuple[str, str]:
    netdev = sender.netdev
    if netdev is None:
        return "small packets get through, large ones do not", ""
    text = f"small packets get through, those of {sender.name} with its MTU of {netdev.mtu} do not"
    return text, f"on {sender.name}: sudo ip link set {netdev.name} mtu {_COMMON_MTU}"


def _opening(way: _Way) -> str:
    """The command that lets the visitor in, as the host's own firewall takes it."""
    listed = ",".join(way.ranges).replace("-", ":")
    match way.host.system.firewall:
        case "ufw":
            return f"sudo ufw allow proto tcp from {way.visitor.address} to any port {listed}"
        case "firewalld":
            opened = " ".join(f"--add-port={ports}/tcp" for ports in way.ranges)
            return f"sudo firewall-cmd --permanent {opened} && sudo firewall-cmd --reload"
        case None:
            rule = f"-p tcp -s {way.visitor.address} -m multiport --dports {listed} -j ACCEPT"
            return f"sudo iptables -I INPUT {rule} (in a cloud: its security group)"


def _ephemeral(host: HostFacts) -> str:
    first, last = host.system.ports.ephemeral
    return f"{first}-{last}"
