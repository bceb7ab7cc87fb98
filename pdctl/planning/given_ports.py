"""The ports that users give, by the flags and variables of a profile that hold nothing but a port."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pdctl.errors import PlanError
from pdctl.planning.ports import API, GivenPorts
from pdctl.planning.user_args import spelled
from pdctl.profiles import EngineRole, Port, Profile, RouterProfile, load_router_profile
from pdctl.profiles.templates import Template
from pdctl.topology.fields import Argument
from pdctl.topology.models import EngineGroup, Topology
from pdctl.topology.router import OWN_ROUTER, Router

_WHOLE = re.compile(r"\{port\.([^}]+)\}")
_WHOLE_OF_FLAG = re.compile(r"(--[^=]+)=(\{port\.[^}]+\})")
_LAST_PORT = 65535


def given_ports(profile: Profile, role: EngineRole, index: int, group: EngineGroup) -> Iterator[GivenPorts]:
    """Walk the ports that a group's flags and variables give; raises PlanError for what an engine cannot have."""
    ports, at = profile.roles[role].ports, f"{role}[{index}]"
    for purpose, key, value in _flags(profile.arguments(role), group.args):
        yield _given(purpose, ports[purpose], f"{at}.args.{key}", value, group.tp, group.dp)
    for name, template in profile.environment(role).items():
        whole = _WHOLE.fullmatch(template.texts[0])
        if whole and name in group.env:
            yield _given(whole[1], ports[whole[1]], f"{at}.env.{name}", group.env[name], group.tp, group.dp)


def router_ports(router: Router, profile: RouterProfile) -> Iterator[GivenPorts]:
    """The same for a router that has a profile."""
    for purpose, key, value in _flags(profile.command, router.args):
        if purpose == API:
            raise PlanError(f"router.args.{key}: give it as `router: {{port: ...}}`")
        yield _given(purpose, profile.ports[purpose], f"router.args.{key}", value)


def ports_of_users(topology: Topology, profile: Profile) -> Iterator[tuple[str, int]]:
    """Walk all ports that users give, with their hosts."""
    router = topology.router
    if router.port:
        yield router.host, router.port
    if router.kind != OWN_ROUTER:
        others = router_ports(router, load_router_profile(router.kind))
        yield from ((router.host, number) for given in others for number in given.numbers)
    for role, index, group in topology.groups():
        if group.replicas and role in profile.roles:
            for given in given_ports(profile, role, index, group):
                yield from ((host, number) for host in group.nodes for number in given.numbers if number)


def _flags(templates: Sequence[Template], args: dict[str, Argument]) -> Iterator[tuple[str, str, Argument]]:
    """Walk those of the users' flags that take ports: purpose, flag, value."""
    purposes = {spelled(flag): purpose for flag, purpose in _flags_of_ports(templates)}
    for name, value in args.items():
        if purpose := purposes.get(spelled(f"--{name}")):
            yield purpose, name, value


def _flags_of_ports(templates: Sequence[Template]) -> Iterator[tuple[str, str]]:
    tokens = [text for template in templates for text in template.texts]
    together = [match.groups() for token in tokens if (match := _WHOLE_OF_FLAG.fullmatch(token))]
    for flag, value in (*pairwise(tokens), *together):
        whole = _WHOLE.fullmatch(value)
        if whole and flag.startswith("--"):
            yield flag, whole[1]


def _given(purpose: str, port: Port, key: str, value: Argument, tp: int = 1, dp: int = 1) -> GivenPorts:
    if value is False and purpose == API:
        raise PlanError(f"{key}: it cannot be without this port, at which the others reach it")
    if value is False:
        return GivenPorts(purpose, [], key)
    items = [] if value is True else value if isinstance(value, list) else str(value).split(",")
    texts = [text for item in items if (text := str(item).strip())]
    needed = 1 if port.consecutive else port.needed(tp, dp)
    if len(texts) != needed:
        raise PlanError(f"{key}: {len(texts)} port(s) given, {needed} needed: {_each(port, tp, dp)}")
    run = port.needed(tp, dp) if port.consecutive else 1
    return GivenPorts(purpose, [number for text in texts for number in _run(key, text, run, port)], key)


def _run(key: str, text: str, count: int, port: Port) -> range:
    if not (text.isascii() and text.isdecimal() and int(text) <= _LAST_PORT):
        raise PlanError(f"{key}: {text} is no port")
    first = int(text)
    if first == 0 and port.kind != "reported":
        raise PlanError(f"{key}: the others have to be told the port: give one, or leave it out for a free one")
    if first + count - 1 > _LAST_PORT:
        raise PlanError(f"{key}: {count} ports in a row do not fit from {first} on")
    return range(first, first + count)


def _each(port: Port, tp: int, dp: int) -> str:
    if port.per == "rank":
        return f"one for each rank, with tp {tp}" + (f" and dp {dp}" if dp > 1 else "")
    return f"one for each of dp {dp}" if port.per == "dp" else "one in all"
