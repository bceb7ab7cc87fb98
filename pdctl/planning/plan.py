"""The plan: every command line, environment, port, GPU and NIC of a deployment, as a plain value."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pdctl.profiles import Readiness as Readiness

Role = Literal["router", "prefill", "decode", "mixed"]

# Stands in an argument or environment value until the router has reported the port it bound ("host:port").
ROUTER_PLACEHOLDER = "{router}"


class HostPlan(BaseModel):
    """How a host is reached, and the address at which the other hosts reach it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    ssh: str | None = None  # None: this machine
    python: str | None = None  # None: the interpreter that runs pdctl
    address: str = "127.0.0.1"


class ProcessPlan(BaseModel):
    """One process: what to run, where, and how to look after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # "router", "prefill-0", "decode-1"
    role: Role
    host: str
    address: str = "127.0.0.1"  # at which clients and the other processes reach it
    argv: tuple[str, ...]
    env: dict[str, str] = {}  # added to the agent's environment
    ports: dict[str, int] = {}  # by purpose; 0: the process binds a free one and reports it
    gpus: tuple[int, ...] = ()
    nics: tuple[str, ...] = ()  # the RDMA devices that it is told to use
    readiness: Readiness = Readiness()
    stop_grace_s: float = 10.0
    metrics: dict[str, str] = {}  # common load name -> the metric's name on the process's metrics port


class Plan(BaseModel):
    """A whole deployment. Equal inputs give an equal plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str
    engine: str
    hosts: dict[str, HostPlan]
    router: ProcessPlan
    engines: tuple[ProcessPlan, ...]

    @property
    def processes(self) -> tuple[ProcessPlan, ...]:
        """The router first, then the engines."""
        return (self.router, *self.engines)
