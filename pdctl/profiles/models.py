"""What a profile says: how to start each role of an engine, or a router, and how to look after it."""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pdctl.profiles.templates import (
    OPTIONAL_PLACEHOLDERS,
    PLACEHOLDERS,
    ROUTER_PLACEHOLDERS,
    Arguments,
    Environment,
    Section,
    Template,
    check_range,
)
from pdctl.validation import nearest

EngineRole = Literal["prefill", "decode", "mixed"]
LoadName = Literal[
    "running",
    "waiting",
    "kv_usage",
    "prompt_tokens",
    "generated_tokens",
    "transferred_tokens",
    "locally_computed_tokens",
    "transferred_bytes",
    "transports",
    "requests",
    "ttft_seconds",
    "ttft_count",
    "tpot_seconds",
    "tpot_count",
    "draining",
    "fallbacks",
]
Metrics = dict[LoadName, str]  # Prometheus name, with the labels that a sample must have; docs/profiles.md

OWN_PROTOCOLS = ("builtin", "fastdeploy", "sglang", "vllm-mooncake", "vllm-nixl")  # those that pdctl's router speaks

PORT_PURPOSE = "^[a-z0-9_-]+$"
_WITH_FLAG = re.compile("--[^=]+=")


class Readiness(Section):
    """How a process's readiness is seen: its own notice, an HTTP path that answers 200, or that of another process."""

    kind: Literal["notify", "http", "head"] = "notify"
    path: str = "/health"
    timeout_s: float = Field(default=300.0, gt=0)


class WarmUp(Section):
    """The request that goes through every pair before a deployment is ready."""

    prompt_words: int = Field(default=1, ge=1)
    timeout_s: float = Field(default=120.0, gt=0)  # on a CPU that is shared, a first request can take long
    retry_s: float = Field(default=0.0, ge=0)  # for how long an error is followed by another try


class Trouble(Section):
    """What a log line means, and what to do."""

    pattern: str  # a regular expression
    advice: str
    port_taken: bool = False  # another process was faster to take a port: the engine is planned again with others

    @field_validator("pattern")
    @classmethod
    def _is_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value


class Port(Section):
    """Where the ports of a purpose come from, and how many there are."""

    # Bound by the process; picked by the plan; or there only if the user gives the flag that takes them.
    kind: Literal["reported", "chosen", "given"]
    per: Literal["engine", "dp", "rank"] = "engine"
    count: int = Field(default=1, ge=1)  # for each of those
    consecutive: bool = False  # the process is told the first, and counts from there
    of_head: bool = False  # an engine's processes on its other hosts are told the first one's, and bind none

    def needed(self, tp: int, dp: int) -> int:
        """How many an engine has."""
        return self.count * {"engine": 1, "dp": dp, "rank": tp * dp}[self.per]

    @model_validator(mode="after")
    def _is_a_row(self) -> Self:
        if self.count > 1 and not self.consecutive:
            raise ValueError("count: more than one are in a row: give consecutive: true too")
        return self


def _port(value: object) -> object:
    return value if isinstance(value, dict | Port) else {"kind": value}


Ports = dict[Annotated[str, Field(pattern=PORT_PURPOSE)], Annotated[Port, BeforeValidator(_port)]]  # by purpose


def _check_api(ports: dict[str, Port]) -> dict[str, Port]:
    api = ports.get("api")
    if api is None or api.kind == "given" or api.per == "rank":
        raise ValueError("must have api, the port of the HTTP API: reported or chosen, one for each engine")
    return ports


class RoleProfile(Section):
    """What one role of an engine has beyond what all have."""

    args: Arguments = ()  # follow the command
    env: Environment = Field(default={})
    ports: Ports

    _has_api = field_validator("ports")(_check_api)


class Follower(Section):
    """What the processes of an engine have on its hosts after the first."""

    args: Arguments = ()  # follow those of the role


class Limits(Section):
    """What the engine cannot do; refused before it starts."""

    max_tp: int | None = Field(default=None, ge=1)
    max_dp: int | None = Field(default=None, ge=1)
    min_dp: int = Field(default=1, ge=1)


class Packages(Section):
    """Where an engine's version is found, and which versions the profile is for."""

    names: tuple[str, ...] = Field(min_length=1)  # Python packages: the first that is installed counts
    versions: str = ""  # as in ">=0.20"
    install: str  # what to do where none is installed

    _is_range = field_validator("versions")(check_range)


class Profile(Section):
    """One engine."""

    name: str
    description: str
    # How prefill and decode work together: a protocol of the router's, or one that only another router speaks.
    protocol: str
    # How the router knows of it: it registers with the deployment's token; without; or the router is told at its start.
    registers: Literal["with token", "without token", "never"] = "never"
    gpus: Literal["none", "optional", "required"]
    dp_shares_gpus: bool = False  # its data parallel ranks use the same GPUs as its tensor parallel ones
    on_own_address: bool = False  # it is reached at its host's own address also where everything runs on one host
    packages: Packages | None = None
    command: Arguments = Field(min_length=1)
    env: Environment = Field(default={})
    roles: dict[EngineRole, RoleProfile] = Field(min_length=1)
    follower: Follower | None = None  # None: it cannot span several hosts
    readiness: Readiness = Readiness()
    warm_up: WarmUp = WarmUp()
    metrics: Metrics = Field(default={})
    stop_grace_s: float = Field(default=10.0, gt=0)
    limits: Limits = Limits()
    troubles: tuple[Trouble, ...] = ()

    @property
    def chooses_ports(self) -> bool:
        """Whether the plan must pick ports for this engine."""
        return any(port.kind == "chosen" for role in self.roles.values() for port in role.ports.values())

    def arguments(self, role: EngineRole, *, follower: bool = False) -> Arguments:
        """Return the command line of a role."""
        own = (*self.command, *self.roles[role].args)
        return (*own, *self.follower.args) if follower and self.follower else own

    def environment(self, role: EngineRole) -> Environment:
        """Return the variables of a role."""
        return {**self.env, **self.roles[role].env}

    @model_validator(mode="after")
    def _check_placeholders(self) -> Self:
        for name, role in self.roles.items():
            arguments, ports = self.arguments(name, follower=True), _port_names(role.ports)
            known = [*PLACEHOLDERS, *OPTIONAL_PLACEHOLDERS, *ports]
            _refuse_unknown(f"role {name}", [*arguments, *self.environment(name).values()], known)
            optional = [*OPTIONAL_PLACEHOLDERS, *_port_names(role.ports, "given")]
            _refuse_lone_values(f"role {name}", arguments, optional)
        return self


class Listing(Section):
    """How a router is told of the engines of a role."""

    once: Arguments = ()  # before all of them
    each: Arguments = Field(min_length=1)  # {engine} is its host:port, {bootstrap} its port of that purpose, if any


def _listing(value: object) -> object:
    return value if isinstance(value, dict | Listing) else {"each": value}


class RouterProfile(Section):
    """A router that is not pdctl's own."""

    name: str
    description: str
    protocols: tuple[str, ...] = Field(min_length=1)  # those of the engines that it can serve
    command: Arguments = Field(min_length=1)
    env: Environment = Field(default={})
    engines: dict[EngineRole, Annotated[Listing, BeforeValidator(_listing)]] = Field(default={})
    pd: Arguments = ()  # added where there are prefill and decode engines
    ports: Ports
    starts: Literal["before engines", "after engines"] = "before engines"
    # Where it says how many engines of each role have registered with it: {"prefill": 1, "decode": 2, "mixed": 0}.
    registered: str | None = None
    readiness: Readiness = Readiness(kind="http")
    metrics: Metrics = Field(default={})
    stop_grace_s: float = Field(default=10.0, gt=0)

    _has_api = field_validator("ports")(_check_api)

    @property
    def role_flags(self) -> set[str]:
        """The flags that follow from the roles of a topology: those for its engines, and the switches among `pd`."""
        listed = [one for listing in self.engines.values() for one in (*listing.once, *listing.each)]
        switches = [token for token, following in pairwise((*_texts(self.pd), "--")) if following.startswith("--")]
        return {text for text in (*_texts(listed), *switches) if text.startswith("--")}

    @model_validator(mode="after")
    def _check_placeholders(self) -> Self:
        known = [*ROUTER_PLACEHOLDERS, *_port_names(self.ports)]
        listings = self.engines.items()
        of_all = [*self.command, *self.pd, *(one for _, listing in listings for one in listing.once)]
        _refuse_unknown("a router", [*of_all, *self.env.values()], known)
        _refuse_lone_values("a router", of_all, _port_names(self.ports, "given"))
        for role, listing in listings:
            _refuse_unknown(f"role {role}", listing.each, [*known, "engine", "bootstrap"])
        for template in (*of_all, *self.env.values(), *(one for _, listing in listings for one in listing.each)):
            if template.versions:
                raise ValueError(f"versions {template.versions!r}: the version of a router is not known: leave it out")
        return self


def _texts(templates: Iterable[Template]) -> Iterator[str]:
    return (text for template in templates for text in template.texts)


def _port_names(ports: dict[str, Port], *kinds: str) -> list[str]:
    return [f"port.{purpose}" for purpose, port in ports.items() if not kinds or port.kind in kinds]


def _refuse_unknown(of: str, templates: Iterable[Template], known: list[str]) -> None:
    for found in (name for template in templates for name in template.placeholders()):
        if found not in known:
            raise ValueError(f"unknown placeholder {{{found}}} of {of}, {nearest(found, known)}")


def _refuse_lone_values(of: str, arguments: Iterable[Template], optional: list[str]) -> None:
    for template in arguments:
        first, *more = template.texts
        if not more and not _WITH_FLAG.match(first) and set(template.placeholders()) & set(optional):
            raise ValueError(f'{first} of {of} can be missing: put it in a list with its flag, [--flag, "{first}"]')
