"""What is done with a process that ends: the values of the key `restart`."""

from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from pdctl.topology.fields import Section, WholeNumber
from pdctl.validation import describe

RestartPolicy = Literal["on-failure", "always", "never"]


class Restart(Section):
    """Whether and when a process is started again; pdctl/agent/backoff.py goes by it."""

    model_config = ConfigDict(frozen=True)

    policy: RestartPolicy = Field(
        default="on-failure",
        description="on-failure: unless it ended with exit code 0; always; or never.",
        examples=["always"],
    )
    backoff_s: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="Seconds until it is started again; doubled after each failure.",
        examples=[2],
    )
    max_backoff_s: float = Field(
        default=30.0, ge=0, le=86400, description="Up to which the seconds are doubled.", examples=[60]
    )
    stable_s: float = Field(
        default=60.0, gt=0, description="Seconds of service after which failures are counted anew.", examples=[300]
    )
    max_restarts: WholeNumber = Field(
        default=5, ge=0, description="After so many without a stable time in between it is given up.", examples=[10]
    )
    probe_interval_s: float = Field(
        default=5.0, gt=0, description="How often it is asked whether it still answers, in seconds.", examples=[10]
    )
    probe_failures: WholeNumber = Field(
        default=3,
        ge=1,
        description="Without an answer to so many in a row it is killed, as one that has failed.",
        examples=[5],
    )
    probe_timeout_s: float = Field(default=5.0, gt=0, description="Seconds for an answer.", examples=[10])

    @model_validator(mode="after")
    def _has_room_to_grow(self) -> Self:
        if self.max_backoff_s < self.backoff_s:
            raise ValueError(f"max_backoff_s {self.max_backoff_s:g} is less than backoff_s {self.backoff_s:g}")
        return self


def _restart_of(value: object) -> object:
    """A policy's name is short for a mapping."""
    policies = get_args(RestartPolicy)
    if isinstance(value, str) and value in policies:
        return {"policy": value}
    if not isinstance(value, dict | Restart):
        raise ValueError(f"expected {', '.join(policies)} or a mapping with policy, got {describe(value)}")
    return value


RestartField = Annotated[Restart, BeforeValidator(_restart_of, json_schema_input_type=RestartPolicy | Restart)]
