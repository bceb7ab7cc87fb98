"""What the agent's `examine` and `meet` answer."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Outcome = Literal["met", "refused", "silent", "no route", "unknown name", "stranger", "stuck there", "stuck back"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interpreter(_Section):
    """The Python that has the engine."""

    path: str
    version: str | None = None
    problem: str | None = None  # why nothing is known of it


class Shm(_Section):
    """What /dev/shm holds."""

    total_bytes: int
    free_bytes: int


class Netdev(_Section):
    """An IPv4 address, and the interface that has it."""

    name: str
    mtu: int
    address: str


class Disk(_Section):
    """Where the files of deployments are."""

    path: str
    writable: bool
    free_bytes: int
    free_files: int | None = None  # None: no limit


class PortRules(_Section):
    """Which ports the kernel gives out by itself, and from which on anybody may listen."""

    ephemeral: tuple[int, int]  # the first and the last
    reserved: str = ""  # those of them that it spares: "8000,9000-9010"
    lowest: int = 1024

    def gives_out(self, port: int) -> bool:
        """Whether an outgoing connection may get that port."""
        first, last = self.ephemeral
        return first <= port <= last and not any(port in ports for ports in self._spared())

    def _spared(self) -> list[range]:
        ends = [part.partition("-")[::2] for part in self.reserved.split(",") if part]
        return [range(int(first), int(last or first) + 1) for first, last in ends]


class Login(_Section):
    """What a logout ends."""

    user: str
    kills_processes: bool
    removes_ipc: bool


class ModelFile(_Section):
    """A file of a model."""

    size: int
    digest: str | None = None  # None: it was not read


class Model(_Section):
    """What a host has of the model; see pdctl/agent/model_files.py."""

    kind: Literal["path", "hub", "name"]
    path: str
    exists: bool
    free_bytes: int
    files: dict[str, ModelFile] = {}
    missing: tuple[str, ...] = ()
    pointers: tuple[str, ...] = ()
    commit: str | None = None


class System(_Section):
    """One host, beyond its inventory."""

    clock: tuple[float, float]  # seconds since the epoch when it began and when it ended to look
    python: str  # the version of the agent's
    interpreter: Interpreter
    absent_workdirs: tuple[str, ...] = ()  # of those in which processes are started
    has_bash: bool = True
    driver: str | None = None  # the version of NVIDIA's kernel module
    memlock: int | None = None  # bytes that a process may lock; None: unlimited
    open_files: int | None = None  # the hard limit; None: unlimited
    shm: Shm | None = None
    netdevs: tuple[Netdev, ...] = ()
    address: str | None = None  # what the address that was given for it resolves to there
    disk: Disk
    ports: PortRules
    login: Login
    firewall: Literal["ufw", "firewalld"] | None = None  # whose tool it has
    model: Model | None = None


class Meeting(_Section):
    """What a host saw of the others."""

    deaf: tuple[tuple[int, str], ...] = ()  # ports on which it could not listen, and why
    visits: tuple[tuple[str, int, Outcome], ...] = ()  # host, port
