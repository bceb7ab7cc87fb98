"""What a user writes of the router: the process that clients talk to."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from pdctl.topology.fields import HERE, Address, Argument, Flag, Secret, Section, WholeNumber
from pdctl.topology.restart import Restart, RestartField

Policy = Literal[
    "cache_aware",
    "metrics_score",
    "power_of_two",
    "process_tokens",
    "random",
    "request_num",
    "round_robin",
    "session_affinity",
]

OWN_ROUTER = "pdctl"
# What another router may be told by a key of its own; its flags for everything else are given in args.
_OF_ALL_ROUTERS = ("kind", "port", "host", "bind", "args", "env", "secrets", "restart")

_FROM_ROLES = "it follows from the roles"
_NO_TLS = "pdctl itself asks the router by plain HTTP"
_NOT_FOR_ROUTER = {
    "splitwise": _FROM_ROLES,
    "prefill": _FROM_ROLES,
    "decode": _FROM_ROLES,
    "mixed": _FROM_ROLES,
    "ssl-certfile": _NO_TLS,
    "ssl-keyfile": _NO_TLS,
}


def _router_flags(value: dict[str, object], info: ValidationInfo) -> dict[str, object]:
    own = info.data.get("kind") == OWN_ROUTER
    for flag in value:
        key = flag.replace("-", "_")
        if key == "host":
            raise ValueError(f"{flag} cannot be given here: `router: {{bind: ...}}` is where it listens")
        if key in (Router.model_fields if own else _OF_ALL_ROUTERS):
            raise ValueError(f"{flag} is a key of its own: `router: {{{key}: ...}}`")
        if own and flag in _NOT_FOR_ROUTER:
            raise ValueError(f"{flag} cannot be given here: {_NOT_FOR_ROUTER[flag]}")
    return value


class Router(Section):
    """The process that clients talk to."""

    kind: str = Field(
        default=OWN_ROUTER,
        min_length=1,
        description="pdctl's own router, or another: a name that `pdctl profiles list` shows, or the path of a "
        "router's profile, relative to this file.",
        examples=["pdctl", "vllm-router"],
    )
    port: WholeNumber = Field(
        default=8000, ge=0, le=65535, description="The port that clients use. 0: any free one.", examples=[8000, 0]
    )
    host: str = Field(
        default=HERE, description="The host that runs the router: a name under `hosts`.", examples=["here"]
    )
    bind: Address | None = Field(
        default=None,
        description="The address on which the router listens. Default: loopback where everything runs on this "
        "machine, else the router's host's own address.",
        examples=["0.0.0.0"],
    )
    prefill_policy: Policy = Field(
        default="process_tokens",
        description="How the prefill engine of a request is chosen.",
        examples=["process_tokens"],
    )
    decode_policy: Policy = Field(
        default="request_num", description="How the decode engine of a request is chosen.", examples=["request_num"]
    )
    mixed_policy: Policy = Field(
        default="request_num",
        description="How the engine of a request is chosen among mixed ones.",
        examples=["round_robin"],
    )
    workers: WholeNumber = Field(
        default=1, ge=0, le=64, description="Processes that serve requests. 0: one for each processor.", examples=[4]
    )
    pd_min_tokens: WholeNumber = Field(
        default=0,
        ge=0,
        description="A decode engine that can compute prompts does so, without a prefill engine, if fewer tokens "
        "than these of a prompt are not in its cache. 0: never.",
        examples=[256],
    )
    env: dict[str, str] = Field(
        default={}, description="Environment variables for the router.", examples=[{"no_proxy": "*"}]
    )
    secrets: dict[str, Secret] = Field(
        default={},
        description="Environment variables whose values are read when it is started, from the launcher's environment "
        "or from a file there, and are never shown or kept.",
        examples=[{"HF_TOKEN": {"env": "HF_TOKEN"}}],
    )
    drain_secs: float = Field(
        default=10,
        ge=0,
        le=3600,
        description="Seconds for the requests in flight when the router is stopped.",
        examples=[60],
    )
    args: Annotated[dict[Flag, Argument], AfterValidator(_router_flags)] = Field(
        default={},
        description="Further flags for the router, without their dashes, as for engines: see docs/router.md.",
        examples=[{"queue-timeout": 10}],
    )
    restart: RestartField = Field(
        default=Restart(),
        description="What is done when it ends or hangs: on-failure, always, never, or a mapping with more.",
        examples=["always", {"max_restarts": 10}],
    )

    @model_validator(mode="after")
    def _has_no_keys_of_another(self) -> Self:
        if self.kind == OWN_ROUTER:
            return self
        for key in sorted(self.model_fields_set - set(_OF_ALL_ROUTERS)):
            raise ValueError(f"{key} is for pdctl's own router: give the flags of {self.kind} in args")
        return self
