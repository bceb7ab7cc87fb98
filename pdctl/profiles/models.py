"""What a profile says: how to start each role of an engine, or a router, and how to look after it."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pdctl.profiles.templates import (
    OPTIONAL_PLACEHOLDERS,
    PLACEHOLDERS,
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
]
Metrics = dict[LoadName, str]  # Prometheus name, with the labels that a sample must have; docs/profiles.md

OWN_PROTOCOLS = ("builtin", "fastdeploy", "sglang", "vllm-mooncake", "vllm-nixl")  # those that pdctl's router speaks

PORT_PURPOSE = "^[a-z0-9_-]+$"


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
    consecutive: bool = False  # the process is told the first, and counts from there
    of_head: bool = False  # an engine's processes on its other hosts are told the first one's

    def count(self, tp: int, dp: int) -> int:
        """How many an engine has."""
        return {"engine": 1, "dp": dp, "rank": tp * dp}[self.per]


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
    registers: Literal["with token", "without token", "no"] = "no"
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
            arguments = self.arguments(name, follower=True)
            _refuse_unknown(f"role {name}", [*arguments, *self.environment(name).values()], role.ports)
            _refuse_lone_values(f"role {name}", arguments, role.ports)
        return self


class RouterProfile(Section):
    """A router that is not pdctl's own."""

    name: str
    description: str
    protocols: tuple[str, ...] = Field(min_length=1)  # those of the engines that it can serve
    command: Arguments = Field(min_length=1)
    env: Environment = Field(default={})
    # What is added for each engine of a role; {engine} is its host:port, {bootstrap} its port of that purpose.
    engines: dict[EngineRole, Arguments] = Field(default={})
    pd: Arguments = ()  # added where there are prefill and decode engines
    ports: Ports
    starts: Literal["before engines", "after engines"] = "before engines"
    readiness: Readiness = Readiness(kind="http")
    metrics: Metrics = Field(default={})
    stop_grace_s: float = Field(default=10.0, gt=0)

    _has_api = field_validator("ports")(_check_api)

    @model_validator(mode="after")
    def _check_placeholders(self) -> Self:
        _refuse_unknown("a router", [*self.command, *self.pd, *self.env.values()], self.ports)
        for role, arguments in self.engines.items():
            _refuse_unknown(f"role {role}", arguments, self.ports, "engine", "bootstrap")
        return self


def _refuse_unknown(of: str, templates: list[Template] | Arguments, ports: dict[str, Port], *more: str) -> None:
    known = [*PLACEHOLDERS, *OPTIONAL_PLACEHOLDERS, *(f"port.{purpose}" for purpose in ports), *more]
    for found in (name for template in templates for name in template.placeholders()):
        if found not in known:
            raise ValueError(f"unknown placeholder {{{found}}} of {of}, {nearest(found, known)}")


def _refuse_lone_values(of: str, arguments: Arguments, ports: dict[str, Port]) -> None:
    given = (f"port.{purpose}" for purpose, port in ports.items() if port.kind == "given")
    optional = {f"{{{placeholder}}}" for placeholder in (*OPTIONAL_PLACEHOLDERS, *given)}
    for first in _lone(arguments):
        if first in optional:
            raise ValueError(f'{first} of {of} can be missing: put it in a list with its flag, [--flag, "{first}"]')


def _lone(arguments: Arguments) -> Iterator[str]:
    return (template.texts[0] for template in arguments if len(template.texts) == 1)
