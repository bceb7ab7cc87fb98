"""Engines as data: how a profile says to start each role of an engine, which ports it has, how to ask for its load."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
    "requests",
]

# What a command or an environment value may hold, in braces; {port.<purpose>} besides.
PLACEHOLDERS = ("python", "model", "role", "router", "host", "advertise_host", "gpus", "tp", "threads")
_PURPOSE = "[a-z0-9_-]+"
_PLACEHOLDER = re.compile(rf"\{{([a-z_]+(?:\.{_PURPOSE})?)\}}")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class Readiness(_Section):
    """How a process's readiness is seen: its own notice, or an HTTP path that answers 200."""

    kind: Literal["notify", "http"] = "notify"
    path: str = "/health"
    timeout_s: float = Field(default=300.0, gt=0)


class RoleProfile(_Section):
    """What one role of an engine has beyond what all have."""

    args: tuple[str, ...] = ()  # follow the command
    env: dict[str, str] = {}
    # By purpose: bound by the process, or picked by the plan.
    ports: dict[Annotated[str, Field(pattern=f"^{_PURPOSE}$")], Literal["reported", "chosen"]]

    @field_validator("ports")
    @classmethod
    def _has_api(cls, ports: dict[str, str]) -> dict[str, str]:
        if "api" not in ports:
            raise ValueError("must have api, the port of the HTTP API")
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
    command: tuple[str, ...] = Field(min_length=1)
    env: dict[str, str] = {}
    roles: dict[EngineRole, RoleProfile] = Field(min_length=1)
    readiness: Readiness = Readiness()
    metrics: dict[LoadName, str] = {}  # Prometheus name, with the labels that a sample must have
    stop_grace_s: float = Field(default=10.0, gt=0)
    limits: Limits = Limits()

    @property
    def chooses_ports(self) -> bool:
        """Whether the plan must pick ports for this engine."""
        return any("chosen" in role.ports.values() for role in self.roles.values())

    @model_validator(mode="after")
    def _placeholders_known(self) -> Self:
        for name, role in self.roles.items():
            known = [*PLACEHOLDERS, *(f"port.{purpose}" for purpose in role.ports)]
            texts = (*self.command, *role.args, *self.env.values(), *role.env.values())
            for found in (match for text in texts for match in _PLACEHOLDER.findall(text)):
                if found not in known:
                    raise ValueError(f"unknown placeholder {{{found}}} of role {name}, {nearest(found, known)}")
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


def fill(template: str, values: dict[str, str]) -> str:
    """Replace the placeholders of a template; the profile has only known ones."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def _built_in() -> dict[str, Path]:
    package = Path(__file__).resolve().parent
    installed = package / "profiles_data"  # in a wheel; a checkout has the folder at its top
    folder = installed if installed.is_dir() else package.parent / "profiles"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
