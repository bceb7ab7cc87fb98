"""The NICs that an engine uses, each with the KV pool registered."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.transfer.transports.rdma.memory import PoolMemory, Region, register
from engine.transfer.transports.rdma.ports import Port, open_ports
from engine.transfer.transports.rdma.settings import Settings

if TYPE_CHECKING:
    from engine.kv.pool import KVPool

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Nic:
    """A port, and the pool as it knows it."""

    port: Port
    region: Region


@dataclass(frozen=True, slots=True)
class Nics:
    """What all connections of an engine share."""

    all: list[Nic]
    nbytes: int  # of the pool
    timeout: int  # of verbs
    memory: PoolMemory

    def close(self) -> None:
        """Unpin the pool and close the devices. No connection is left."""
        self.memory.close()
        for nic in self.all:
            nic.port.close()


def open_nics(settings: Settings, pool: "KVPool") -> Nics:
    """Open the ports and register the pool with each: for a thread. Raises TransferError with the reasons."""
    ports = open_ports(settings)
    try:
        memory = register(ports, pool)
    except BaseException:
        for port in ports:
            port.close()
        raise
    logger.info("RDMA: %d MiB registered with %d NIC(s): %s", pool.nbytes >> 20, len(ports), memory.kind)
    nics = [Nic(port, region) for port, region in zip(ports, memory.regions, strict=True)]
    return Nics(nics, pool.nbytes, settings.timeout, memory)
