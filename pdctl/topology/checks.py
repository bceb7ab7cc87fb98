"""What a topology must be beyond the form of its keys."""

from collections.abc import Iterator

from pdctl.profiles import engine_problem, load_router_profile, router_problem
from pdctl.topology.models import Topology
from pdctl.topology.router import OWN_ROUTER
from pdctl.validation import Problem, nearest
from pdctl.yamlfile import Key, show_key


def find_problems(topology: Topology) -> list[Problem]:
    """Return everything that is wrong with the topology as a whole."""
    return [*_engine(topology), *_roles(topology), *_hosts(topology), *_gpus(topology)]


def _engine(topology: Topology) -> Iterator[Problem]:
    if problem := engine_problem(topology.engine):
        yield Problem(("engine",), problem)
    kind = topology.router.kind
    if kind == OWN_ROUTER:
        return
    if problem := router_problem(kind, OWN_ROUTER):
        yield Problem(("router", "kind"), problem)
        return
    role_flags = load_router_profile(kind).role_flags
    for flag in topology.router.args:
        if f"--{flag.replace('_', '-')}" in role_flags:
            yield Problem(("router", "args", flag), f"{flag} cannot be given here: it follows from the roles")


def _roles(topology: Topology) -> Iterator[Problem]:
    prefill, decode, mixed = (topology.replicas(role) for role in ("prefill", "decode", "mixed"))
    if mixed and (prefill or decode):
        yield Problem(("mixed",), "not together with prefill and decode: a router serves either pairs or mixed engines")
    elif not (prefill or decode or mixed):
        yield Problem((), "no engines: give prefill and decode, or mixed (such as `prefill: 1` and `decode: 1`)")
    elif prefill and not decode:
        yield Problem(("prefill",), "there is no decode role: add `decode: 1`, or use mixed instead of prefill")
    elif decode and not prefill:
        yield Problem(("decode",), "there is no prefill role: add `prefill: 1`, or use mixed instead of decode")


def _hosts(topology: Topology) -> Iterator[Problem]:
    references: list[tuple[Key, str]] = [(("router", "host"), topology.router.host)]
    references += [
        ((role, index, "hosts", number) if group.hosts else (role, index, "host"), name)
        for role, index, group in topology.groups()
        for number, name in enumerate(group.nodes)
    ]
    for key, name in references:
        if name not in topology.hosts:
            yield Problem(key, f"unknown host {name!r}, {nearest(name, list(topology.hosts))}")
    machines: dict[str | None, str] = {}
    for name, host in topology.hosts.items():
        other = machines.setdefault(host.ssh, name)
        if other != name:
            yield Problem(("hosts", name), f"is the same machine as hosts.{other}: keep one of the two")


def _gpus(topology: Topology) -> Iterator[Problem]:
    users: dict[tuple[str, int], Key] = {}
    for role, index, group in topology.groups():
        key: Key = (role, index, "gpus")
        for host, gpu in ((host, gpu) for host in group.nodes for gpu in group.gpus or ()):
            if (host, gpu) in users:
                yield Problem(key, f"GPU {gpu} of host {host!r} is already used by {show_key(users[host, gpu])}")
            users.setdefault((host, gpu), key)
