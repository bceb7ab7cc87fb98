"""What a host has, as its agent's probe reports it."""

from pydantic import BaseModel, ConfigDict

IDLE_MEMORY_MB = 512


class Gpu(BaseModel):
    """One GPU of a host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    uuid: str
    name: str
    memory_total_mb: int
    memory_used_mb: int
    users: tuple[str, ...] = ()  # "pid 123 (python)", as far as they can be seen

    @property
    def is_free(self) -> bool:
        """Whether nothing computes on it; a driver or a display may hold a little."""
        return self.memory_used_mb <= IDLE_MEMORY_MB


class Inventory(BaseModel):
    """One host at the moment of the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hostname: str
    address: str  # at which other hosts reach it
    cpus: int  # that this user's processes may run on
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str | None = None  # why it is not known which there are
    taken_ports: dict[int, str] = {}  # listening TCP ports and their holders: {8000: "pid 123 (nginx)"}
    python: str  # the interpreter's path
    free_disk_bytes: int
