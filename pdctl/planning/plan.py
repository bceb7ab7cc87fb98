"""The plan: every command line, environment, port, GPU and NIC of a deployment, as a plain value."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pdctl.profiles import Readiness as Readiness
from pdctl.profiles import Trouble, WarmUp
from pdctl.topology.fields import Secret
from pdctl.topology.restart import Restart

Role = Literal["router", "prefill", "decode", "mixed"]

LOOPBACK = "127.0.0.1"  # where all of a deployment meets that is on this machine alone
# Stands in an argument or environment value until the router has reported the port it bound ("host:port").
ROUTER_PLACEHOLDER = "{router}"
# Stands for a folder of the process's own among the files of the deployment.
WORK_DIR_PLACEHOLDER = "{work_dir}"


class HostPlan(BaseModel):
    """How a host is reached, and the address at which the other hosts reach it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    ssh: str | None = None  # None: this machine
    accept_new: bool = False  # whether ssh may trust a host key that it has never seen
    python: str | None = None  # None: the interpreter that runs pdctl
    address: str = "127.0.0.1"


class ProcessPlan(BaseModel):
    """One process: what to run, where, and how to look after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # "router", "prefill-0", "decode-1"; on an engine's further hosts "decode-1-node1"
    role: Role
    host: str
    address: str = "127.0.0.1"  # at which clients and the other processes reach it
    argv: tuple[str, ...]
    env: dict[str, str] = {}  # added to the agent's environment
    secrets: dict[str, Secret] = {}  # where further variables have their values from, when it is started
    workdir: str | None = None
    setup: str | None = None  # what bash runs first, in the process's own environment
    ports: dict[str, int] = {}  # by purpose; 0: the process binds a free one and reports it
    gpus: tuple[int, ...] = ()
    nics: tuple[str, ...] = ()  # the RDMA devices that it is told to use
    threads: int = 0  # the processors that it is told to use; 0: it is told nothing of them
    port_numbers: dict[str, tuple[int, ...]] = {}  # all ports that it is given, by purpose; 0 as in `ports`
    group: int = 0  # which of its role's groups in the topology it is of
    head: str | None = None  # the process of this engine that has its API; None: this is it
    readiness: Readiness = Readiness()
    stop_grace_s: float = 10.0
    restart: Restart = Restart()
    metrics: dict[str, str] = {}  # common load name -> the metric's name on the process's metrics port

    @property
    def given_ports(self) -> frozenset[int]:
        """The ports that it is to bind, all of them; those that it chooses itself are not known."""
        return frozenset(number for numbers in self.port_numbers.values() for number in numbers if number)

    @property
    def api_ports(self) -> tuple[str, ...]:
        """The purposes of its API's ports: several where each data parallel rank has one."""
        return tuple(purpose for purpose in self.ports if purpose == "api" or purpose.startswith("api-"))


class Plan(BaseModel):
    """A whole deployment. Equal inputs give an equal plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str
    engine: str
    engine_versions: dict[str, str] = {}  # by host, where they are known
    has_own_router: bool = True  # pdctl's: it says which engines served a request, and takes one to engines of choice
    router_kind: str = "pdctl"  # the name of its profile
    router_starts_last: bool = False  # it waits for the engines itself, and looks seldom
    registered_path: str | None = None  # where another router with which the engines register says how many have
    warm_up: WarmUp = WarmUp()
    troubles: tuple[Trouble, ...] = ()  # what log lines of the engines mean
    hosts: dict[str, HostPlan]  # those that run an agent
    router: ProcessPlan
    engines: tuple[ProcessPlan, ...]

    @property
    def processes(self) -> tuple[ProcessPlan, ...]:
        """The router first, then the engines."""
        return (self.router, *self.engines)
