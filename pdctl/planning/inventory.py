"""What a host has, as its agent's probe reports it."""

from pydantic import BaseModel, ConfigDict

IDLE_MEMORY_MB = 512


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(_Section):
    """One GPU of a host."""

    index: int
    uuid: str
    name: str
    memory_total_mb: int
    memory_used_mb: int
    pci: str | None = None  # its address, as in the place of it
    users: tuple[str, ...] = ()  # "pid 123 (python)", as far as they can be seen

    @property
    def is_free(self) -> bool:
        """Whether nothing computes on it; a driver or a display may hold a little."""
        return self.memory_used_mb <= IDLE_MEMORY_MB


class PciPlace(_Section):
    """Where a PCI device is."""

    path: tuple[str, ...]  # host bridge, bridges, device: ("pci0000:15", "0000:15:01.0", "0000:16:00.0")
    numa_node: int | None = None  # None: the kernel does not know it

    @property
    def address(self) -> str:
        """Its address: domain, bus, device and function."""
        return self.path[-1]


class Gid(_Section):
    """An entry of a port's GID table that is set."""

    index: int
    gid: str  # as in fe80:0000:0000:0000:0a3f:72ff:fe01:0203
    type: str  # "RoCE v2", "IB/RoCE v1"
    netdev: str | None = None


class Nic(_Section):
    """One port of an RDMA device."""

    device: str  # as in mlx5_0
    port: int
    node_type: str = "CA"
    state: str = "ACTIVE"
    phys_state: str = "LinkUp"
    rate: str  # "400 Gb/sec (4X NDR)"
    link_layer: str  # "InfiniBand" or "Ethernet"
    lid: int = 0
    gids: tuple[Gid, ...] = ()
    netdev: str | None = None
    bond: tuple[str, ...] = ()  # what the netdev joins, if it is a bond
    place: PciPlace | None = None
    physical_function: str | None = None  # the PCI address of what this is a virtual function of
    software: bool = False  # the kernel does its work, on another interface
    can_open: bool = True  # by this user, in this container

    @property
    def gigabits(self) -> float:
        """What the port carries in a second."""
        return float(self.rate.split()[0]) if self.rate else 0.0


class Inventory(_Section):
    """One host at the moment of the probe."""

    hostname: str
    address: str  # at which other hosts reach it
    cpus: int  # that this user's processes may run on
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str | None = None  # why it is not known which there are
    gpu_places: tuple[PciPlace, ...] = ()  # of the GPUs that the PCI bus has, known to the driver or not
    nics: tuple[Nic, ...] = ()
    nics_in_environment: str | None = None  # KVCACHE_RDMA_NICS, where the agent's environment has it
    taken_ports: dict[int, str] = {}  # listening TCP ports and their holders: {8000: "pid 123 (nginx)"}
    python: str  # the path of the interpreter that runs pdctl's agent
    prepared_python: str | None = None  # of the environment that `pdctl hosts prepare` has made there for this version
    engine_package: str | None = None  # the first of the profile's packages that the engine's interpreter has
    engine_version: str | None = None  # of that package
    engine_problem: str | None = None  # why it is not known
    free_disk_bytes: int
