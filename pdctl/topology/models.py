"""What a user writes: which model, on which hosts, with how many prefill and decode engines."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pdctl.profiles import EngineRole
from pdctl.topology.fields import (
    HERE,
    Address,
    Argument,
    Flag,
    SafeName,
    Secret,
    Section,
    WholeNumber,
    gpus_of,
    groups_of,
    host_of,
    whole_number,
)
from pdctl.topology.restart import Restart, RestartField
from pdctl.topology.router import Router

DEFAULT_MODEL = "smollm2-135m-instruct"
ROLES: tuple[EngineRole, ...] = ("prefill", "decode", "mixed")


class Host(Section):
    """A machine: this one (`local`), or one reached by SSH."""

    ssh: str | None = Field(
        default=None,
        min_length=1,
        pattern=r"^[^-\s]\S*$",  # never an option of ssh
        description="How OpenSSH reaches the host: [user@]host, or a name in ~/.ssh/config. Without it: this machine.",
        examples=["ops@10.0.0.5"],
    )
    python: str | None = Field(
        default=None,
        min_length=1,
        description="The Python interpreter that has the engine there. Default: the one that runs pdctl.",
        examples=["/opt/serving/bin/python"],
    )
    host_keys: Literal["known", "accept-new"] = Field(
        default="known",
        description="Which host keys are trusted: those in your known_hosts, or also those of hosts never seen before, "
        "which are kept there. A key that has changed is refused in any case.",
        examples=["accept-new"],
    )
    env: dict[str, str] = Field(
        default={},
        description="Environment variables for everything that is started there; a role's own go before.",
        examples=[{"HF_HOME": "/data/hf"}],
    )
    workdir: str | None = Field(
        default=None,
        min_length=1,
        description="The folder in which everything is started, on that host.",
        examples=["/srv/serving"],
    )
    setup: str | None = Field(
        default=None,
        min_length=1,
        description="Shell commands that bash runs right before anything there is started, in the same environment.",
        examples=["source /opt/intel/setvars.sh"],
    )
    address: Address | None = Field(
        default=None,
        description="The address at which the other hosts reach this one. Default: what the host itself reports.",
        examples=["10.0.0.5"],
    )


GpuList = list[Annotated[int, Field(ge=0), BeforeValidator(whole_number)]]
Gpus = Annotated[GpuList | None, BeforeValidator(gpus_of, json_schema_input_type=Literal["auto"] | GpuList | None)]


class EngineGroup(Section):
    """Engines of one role that are started alike on one host."""

    host: str = Field(default=HERE, description="The host that runs them: a name under `hosts`.", examples=["gpu1"])
    hosts: list[str] = Field(
        default=[],
        description="Instead of `host`, for engines that span several hosts: their names, the first is the one that "
        "the router talks to. Each has an equal share of an engine's GPUs.",
        examples=[["gpu1", "gpu2"]],
    )
    replicas: WholeNumber = Field(default=1, ge=0, description="How many engines.", examples=[2])
    tp: WholeNumber = Field(default=1, ge=1, description="Tensor parallelism: the GPUs of one engine.", examples=[2])
    dp: WholeNumber = Field(
        default=1, ge=1, description="Data parallelism within an engine: how many ranks of `tp` GPUs.", examples=[2]
    )
    gpus: Gpus = Field(
        default=None,
        description="The GPUs to use on each host, as `nvidia-smi` numbers them: as many as its engines have there "
        "(`replicas` x `tp` x `dp` on one host). Default: auto, free ones where the engine needs GPUs, else none.",
        examples=["auto", [0, 1]],
    )
    args: dict[Flag, Argument] = Field(
        default={},
        description="Flags for the engine, without their dashes: `max-model-len: 8192` becomes --max-model-len 8192. "
        "true gives the bare flag, false leaves it out, a list is joined with commas. A flag given here replaces the "
        "profile's own.",
        examples=[{"max-model-len": 8192}],
    )
    env: dict[str, str] = Field(
        default={}, description="Environment variables for the engine.", examples=[{"HF_HOME": "/data/hf"}]
    )
    workdir: str | None = Field(
        default=None,
        min_length=1,
        description="The folder in which the engine is started, on its host: instead of the host's own.",
        examples=["/srv/serving"],
    )
    setup: str | None = Field(
        default=None,
        min_length=1,
        description="Shell commands that bash runs right before the engine is started, after the host's own, in the "
        "same environment.",
        examples=["source /opt/intel/setvars.sh"],
    )
    secrets: dict[str, Secret] = Field(
        default={},
        description="Environment variables whose values are read when it is started, from the launcher's environment "
        "or from a file there, and are never shown or kept.",
        examples=[{"HF_TOKEN": {"env": "HF_TOKEN"}}],
    )

    restart: RestartField = Field(
        default=Restart(),
        description="What is done when one ends or hangs: on-failure, always, never, or a mapping with more.",
        examples=["always", {"max_restarts": 10}],
    )

    @property
    def nodes(self) -> tuple[str, ...]:
        """The hosts of each of its engines, that of the head first."""
        return tuple(self.hosts) or (self.host,)

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if self.hosts and "host" in self.model_fields_set:
            raise ValueError("give either host or hosts")
        if len(set(self.hosts)) < len(self.hosts):
            raise ValueError("hosts: each host can be there once")
        return self


Groups = Annotated[
    list[EngineGroup],
    BeforeValidator(groups_of, json_schema_input_type=Annotated[int, Field(ge=0)] | EngineGroup | list[EngineGroup]),
]


class Topology(Section):
    """A prefill/decode disaggregated deployment: what to serve, where, and with how many engines."""

    name: SafeName = Field(
        default="default", description="Tells deployments apart; several can run at once.", examples=["chat"]
    )
    model: str = Field(
        default=DEFAULT_MODEL,
        min_length=1,
        description="An alias, a folder, a GGUF file or a hub id. Paths are relative to this file.",
        examples=["smollm2-135m-instruct", "./models/chat.gguf"],
    )
    engine: str = Field(
        default="builtin",
        min_length=1,
        description="The engine's profile: a name, or the path of a profile file, relative to this file.",
        examples=["builtin", "./my-engine.yaml"],
    )
    router: Router = Field(
        default=Router(),
        description="The process that clients talk to: where, and how it chooses.",
        examples=[{"port": 8000}],
    )
    hosts: dict[SafeName, Annotated[Host, BeforeValidator(host_of, json_schema_input_type=Literal["local"] | Host)]] = (
        Field(
            default={},
            description="The machines, by name. This machine is `here` where it has no other name.",
            examples=[{"here": "local", "gpu1": {"ssh": "ops@10.0.0.5"}}],
        )
    )
    prefill: Groups = Field(
        default=[], description="Engines that compute prompts: a number, one group or a list of groups.", examples=[1]
    )
    decode: Groups = Field(
        default=[], description="Engines that generate answers: a number, one group or a list of groups.", examples=[1]
    )
    mixed: Groups = Field(
        default=[], description="Engines that do both; not together with prefill and decode.", examples=[1]
    )

    def groups(self) -> Iterator[tuple[EngineRole, int, EngineGroup]]:
        """Walk all groups: role, place in the role's list, group."""
        for role in ROLES:
            for index, group in enumerate(getattr(self, role)):
                yield role, index, group

    def replicas(self, role: EngineRole) -> int:
        """Count the engines of a role."""
        return sum(group.replicas for other, _, group in self.groups() if other == role)

    @model_validator(mode="after")
    def _name_this_machine(self) -> Self:
        if HERE in self.hosts:
            return self
        local = next((name for name, host in self.hosts.items() if host.ssh is None), None)
        if local is None:
            self.hosts[HERE] = Host()
            return self
        placed: list[Router | EngineGroup] = [self.router, *(group for _, _, group in self.groups())]
        for section in placed:
            if section.host == HERE and not getattr(section, "hosts", None):
                section.host = local
        return self


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the topology file, as editors want it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Topology.model_json_schema()}
