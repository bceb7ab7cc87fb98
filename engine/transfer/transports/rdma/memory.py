"""The KV pool as NICs reach it."""

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyverbs.mr import MR
from pyverbs.pyverbs_error import PyverbsError

from engine.errors import TransferError
from engine.transfer.transports.rdma.enums import enums
from engine.transfer.transports.rdma.ports import Port

if TYPE_CHECKING:
    from engine.kv.pool import KVPool

ACCESS = enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_WRITE


class Span(NamedTuple):
    """A run of bytes in the pool."""

    at: int
    nbytes: int


class Region(NamedTuple):
    """The pool, or what stands for it, as one NIC knows it."""

    address: int  # of its first byte, for work requests of either side
    lkey: int
    rkey: int
    registration: MR


class Bounce(Protocol):
    """Host memory as large as the pool, with the same places, that NICs use where they do not reach a GPU's memory."""

    address: int

    def fetch(self, spans: Sequence[Span]) -> None:
        """Copy what is to be sent out of the pool; for a thread."""
        ...

    def settle(self, spans: Sequence[Span]) -> None:
        """Copy what has been received into the pool; for a thread."""
        ...


class Flush(Protocol):
    """What makes received bytes visible to a GPU, where its memory was written but not yet in order."""

    def settle(self, spans: Sequence[Span]) -> None:
        """On return, kernels see all that the NIC had received; for a thread."""
        ...


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """The pool, registered with each NIC."""

    kind: str  # "host", "dmabuf", "peermem" or "bounce"
    regions: list[Region]  # of each port
    bounce: Bounce | None = None
    flush: Flush | None = None

    def close(self) -> None:
        """Unpin it. No queue pair is left."""
        for region in self.regions:
            region.registration.close()


def register(ports: Sequence[Port], pool: "KVPool") -> PoolMemory:
    """Pin the pool and let peers that have the key write to it; takes long for a large one. Raises TransferError."""
    if pool.tensor.is_cuda:
        from engine.transfer.transports.rdma.gpu import register_gpu  # needs torch

        return register_gpu(ports, pool)
    return PoolMemory("host", register_host(ports, pool.tensor.data_ptr(), pool.nbytes))


def register_host(ports: Sequence[Port], address: int, nbytes: int) -> list[Region]:
    """Register memory by its address. Raises TransferError."""
    regions: list[Region] = []
    for port in ports:
        try:
            registration = MR(port.pd, nbytes, ACCESS, address=address)
        except PyverbsError as error:
            for region in regions:
                region.registration.close()
            raise TransferError(
                f"{port.address.name} does not register {nbytes >> 20} MiB of memory: {error}; {_memlock()}"
            ) from None
        regions.append(Region(address, registration.lkey, registration.rkey, registration))
    return regions


def _memlock() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "ulimit -l is " + ("unlimited" if limit == resource.RLIM_INFINITY else f"{limit >> 10} KiB")
