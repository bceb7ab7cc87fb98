"""What a topology must be beyond the form of its keys."""

from collections.abc import Iterator

from pdctl.profiles import engine_problem
from pdctl.topology.models import EngineGroup, Topology
from pdctl.validation import Problem, nearest
from pdctl.yamlfile import Key, show_key


def find_problems(topology: Topology) -> list[Problem]:
    """Return everything that is wrong with the topology as a whole."""
    return [*_engine(topology), *_roles(topology), *_hosts(topology), *_gpus(topology)]


def _engine(topology: Topology) -> Iterator[Problem]:
    if problem := engine_problem(topology.engine):
        yield Problem(("engine",), problem)


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
    references += [((role, index, "host"), group.host) for role, index, group in topology.groups()]
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
        if group.gpus is None:
            continue
        if problem := _wrong_number(group):
            yield Problem(key, problem)
        for gpu in group.gpus:
            if (group.host, gpu) in users:
                first = show_key(users[group.host, gpu])
                yield Problem(key, f"GPU {gpu} of host {group.host!r} is already used by {first}")
            users.setdefault((group.host, gpu), key)


def _wrong_number(group: EngineGroup) -> str | None:
    needed, given = group.replicas * group.tp, len(group.gpus or ())
    if given == needed:
        return None
    return f"{given} given, but replicas {group.replicas} x tp {group.tp} need {needed}"
