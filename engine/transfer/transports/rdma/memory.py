"""The KV pool, registered with a NIC."""

import resource
from typing import TYPE_CHECKING, NamedTuple

from pyverbs.mr import MR
from pyverbs.pyverbs_error import PyverbsError

from engine.errors import TransferError
from engine.transfer.transports.rdma.enums import enums
from engine.transfer.transports.rdma.ports import Port

if TYPE_CHECKING:
    from engine.kv.pool import KVPool

_ACCESS = enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_WRITE


class Region(NamedTuple):
    """Memory as one NIC knows it."""

    address: int  # of its first byte, for work requests of either side
    nbytes: int
    lkey: int
    rkey: int
    registration: MR


def register(port: Port, pool: "KVPool") -> Region:
    """Pin the pool's memory and let peers that know the key write to it; takes long for a large one."""
    address = pool.tensor.data_ptr()
    try:
        registration = MR(port.pd, pool.nbytes, _ACCESS, address=address)
    except PyverbsError as error:
        raise TransferError(
            f"{port.address.name} does not register {pool.nbytes >> 20} MiB of memory: {error}; {_memlock()}"
        ) from None
    return Region(address, pool.nbytes, registration.lkey, registration.rkey, registration)


def _memlock() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "ulimit -l is " + ("unlimited" if limit == resource.RLIM_INFINITY else f"{limit >> 10} KiB")
