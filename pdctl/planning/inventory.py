"""What a host has, as its agent's probe reports it."""

from pydantic import BaseModel, ConfigDict


class Gpu(BaseModel):
    """One GPU of a host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    uuid: str
    name: str
    memory_total_mb: int
    memory_used_mb: int


class Inventory(BaseModel):
    """One host at the moment of the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hostname: str
    address: str  # at which other hosts reach it
    cpus: int  # that this user's processes may run on
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    taken_ports: dict[int, str] = {}  # listening TCP ports and their holders: {8000: "pid 123 (nginx)"}
    python: str  # the interpreter's path
    free_disk_bytes: int
