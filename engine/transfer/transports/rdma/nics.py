"""The NICs that an engine uses, each with the KV pool registered."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.transfer.transports.rdma.memory import Region, register
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
    memory: str  # how the NICs reach the pool

    def close(self) -> None:
        """Unpin the pool and close the devices. No connection is left."""
        for nic in self.all:
            nic.region.registration.close()
            nic.port.close()


def open_nics(settings: Settings, pool: "KVPool") -> Nics:
    """Open the ports and register the pool with each: for a thread. Raises TransferError with the reasons."""
    nics: list[Nic] = []
    ports = open_ports(settings)
    try:
        nics = [Nic(port, register(port, pool)) for port in ports]
    except BaseException:
        for port in ports:
            port.close()
        raise
    logger.info("RDMA: %d MiB registered with %d NIC(s)", pool.nbytes >> 20, len(nics))
    return Nics(nics, pool.nbytes, settings.timeout, "host")
