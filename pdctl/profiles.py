"""Engines as data: how a profile says to start each role of an engine, which ports it has, how to ask for its load."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pdctl.errors import TopologyError
from pdctl.validation import nearest, validate
from pdctl.yamlfile import read_yaml

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

# What a command or an environment value may hold, in braces; {port.<purpose>} besides.
PLACEHOLDERS = ("python", "model", "role", "router", "host", "advertise_host", "gpus", "tp", "threads")
# A host may have no value for these: an argument or variable that holds one is left out then.
OPTIONAL_PLACEHOLDERS = ("nics", "ucx_net_devices")
_PURPOSE = "[a-z0-9_-]+"
_PLACEHOLDER = re.compile(rf"\{{([a-z_]+(?:\.{_PURPOSE})?)\}}")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class Readiness(_Section):
    """How a process's readiness is seen: its own notice, or an HTTP path that answers 200."""

    kind: Literal["notify", "http"] = "notify"
    path: str = "/health"
    timeout_s: float = Field(default=300.0, gt=0)


class Port(_Section):
    """Where the ports of a purpose come from, and how many there are."""

    # Bound by the process; picked by the plan; or there only if the user gives the flag that takes them.
    kind: Literal["reported", "chosen", "given"]
    per: Literal["engine", "rank"] = "engine"

    def count(self, ranks: int) -> int:
        """How many an engine of so many ranks has."""
        return ranks if self.per == "rank" else 1


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def _port(value: object) -> object:
    return value if isinstance(value, dict | Port) else {"kind": value}


# An argument, or several that are left out together.
Arguments = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]


class RoleProfile(_Section):
    """What one role of an engine has beyond what all have."""

    args: tuple[Arguments, ...] = ()  # follow the command
    env: dict[str, str] = {}
    ports: dict[Annotated[str, Field(pattern=f"^{_PURPOSE}$")], Annotated[Port, BeforeValidator(_port)]]  # by purpose

    @field_validator("ports")
    @classmethod
    def _has_api(cls, ports: dict[str, Port]) -> dict[str, Port]:
        api = ports.get("api")
        if api is None or api.kind == "given" or api.per == "rank":
            raise ValueError("must have api, the port of the HTTP API: reported or chosen, one for each engine")
        return ports


class Limits(_Section):
    """What the engine cannot do; refused before it starts."""

    max_tp: int | None = Field(default=None, ge=1)


class Profile(_Section):
    """One engine."""

    name: str
    description: str
    protocol: Literal["splitwise"]  # how the router talks to a prefill and a decode engine
    gpus: Literal["none", "optional", "required"]
    command: tuple[Arguments, ...] = Field(min_length=1)
    env: dict[str, str] = {}
    roles: dict[EngineRole, RoleProfile] = Field(min_length=1)
    readiness: Readiness = Readiness()
    metrics: dict[LoadName, str] = {}  # Prometheus name, with the labels that a sample must have; docs/profiles.md
    stop_grace_s: float = Field(default=10.0, gt=0)
    limits: Limits = Limits()

    @property
    def chooses_ports(self) -> bool:
        """Whether the plan must pick ports for this engine."""
        return any(port.kind == "chosen" for role in self.roles.values() for port in role.ports.values())

    def arguments(self, role: EngineRole) -> tuple[Arguments, ...]:
        """Return the command line of a role."""
        return (*self.command, *self.roles[role].args)

    @model_validator(mode="after")
    def _placeholders_known(self) -> Self:
        for name, role in self.roles.items():
            known = [*PLACEHOLDERS, *OPTIONAL_PLACEHOLDERS, *(f"port.{purpose}" for purpose in role.ports)]
            texts = [text for several in self.arguments(name) for text in several]
            for found in _placeholders(*texts, *self.env.values(), *role.env.values()):
                if found not in known:
                    raise ValueError(f"unknown placeholder {{{found}}} of role {name}, {nearest(found, known)}")
        return self

    @model_validator(mode="after")
    def _flags_go_with_their_values(self) -> Self:
        for name, role in self.roles.items():
            given = (f"port.{purpose}" for purpose, port in role.ports.items() if port.kind == "given")
            optional = {f"{{{placeholder}}}" for placeholder in (*OPTIONAL_PLACEHOLDERS, *given)}
            for first, *others in self.arguments(name):
                if first in optional and not others:
                    raise ValueError(
                        f'{first} of role {name} can be missing: put it in a list with its flag, [--flag, "{first}"]'
                    )
        return self


def load_profile(name_or_path: str) -> Profile:
    """Load a built-in profile by its name, or a user's by its path (with a slash, or ending in .yaml or .yml)."""
    if problem := engine_problem(name_or_path):
        raise TopologyError(f"engine: {problem}")
    path = _built_in().get(name_or_path) or Path(name_or_path).expanduser()
    return validate(Profile, read_yaml(path))


def engine_problem(name_or_path: str) -> str | None:
    """Say why this is no engine: neither a known name nor the form of a path."""
    known = list(_built_in())
    if name_or_path in known or "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return None
    return (
        f"unknown engine {name_or_path!r}, {nearest(name_or_path, known)} (a profile of your own is given by its path)"
    )


def fill(templates: Sequence[str], values: dict[str, str]) -> list[str]:
    """Replace the placeholders of templates that belong together; nothing is left of them where one has no value."""
    if not values.keys() >= set(_placeholders(*templates)):
        return []
    return [_PLACEHOLDER.sub(lambda match: values[match[1]], template) for template in templates]


def _placeholders(*texts: str) -> list[str]:
    return [name for text in texts for name in _PLACEHOLDER.findall(text)]


def _built_in() -> dict[str, Path]:
    package = Path(__file__).resolve().parent
    installed = package / "profiles_data"  # in a wheel; a checkout has the folder at its top
    folder = installed if installed.is_dir() else package.parent / "profiles"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
