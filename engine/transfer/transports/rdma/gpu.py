"""A KV pool in a GPU's memory: by dmabuf, by the kernel module nvidia-peermem, or by way of pinned host memory."""

import logging
import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pyverbs.mr import DmaBufMR
from pyverbs.pyverbs_error import PyverbsError

from engine.errors import TransferError
from engine.transfer.transports import cuda_driver
from engine.transfer.transports.rdma.memory import ACCESS, PoolMemory, Region, Span, register_host
from engine.transfer.transports.rdma.ports import Port

if TYPE_CHECKING:
    from engine.kv.pool import KVPool

logger = logging.getLogger(__name__)


def register_gpu(ports: Sequence[Port], pool: "KVPool") -> PoolMemory:
    """Take the first way that works with all ports. Raises TransferError with the reasons."""
    device = pool.tensor.device
    cuda_driver.use(device.index)
    flush = None if cuda_driver.orders_rdma_writes(device.index) else GpuFlush(device.index)
    reasons = []
    for kind, register in (("dmabuf", _by_dmabuf), ("peermem", register_host)):
        try:
            return PoolMemory(kind, register(ports, pool.tensor.data_ptr(), pool.nbytes), flush=flush)
        except TransferError as error:
            reasons.append(f"{kind}: {error}")
    logger.warning(
        "RDMA: the NICs do not reach the GPU's memory (%s): KV goes by way of %d MiB of pinned host memory",
        "; ".join(reasons),
        pool.nbytes >> 20,
    )
    bounce = GpuBounce(pool.tensor)
    return PoolMemory("bounce", register_host(ports, bounce.address, pool.nbytes), bounce=bounce)


class GpuBounce:
    """Pinned memory beside a pool on a GPU."""

    def __init__(self, pool: torch.Tensor) -> None:
        self._pool = pool.view(-1).view(torch.uint8)
        try:
            self._pinned = torch.empty(self._pool.shape, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise TransferError(f"{self._pool.nbytes >> 20} MiB of host memory cannot be pinned: {error}") from None
        self.address = self._pinned.data_ptr()
        self._stream = torch.cuda.Stream(pool.device)  # type: ignore[no-untyped-call]

    def fetch(self, spans: Sequence[Span]) -> None:
        """Copy out of the pool."""
        self._copy(self._pool, self._pinned, spans)

    def settle(self, spans: Sequence[Span]) -> None:
        """Copy into the pool."""
        self._copy(self._pinned, self._pool, spans)

    def _copy(self, source: torch.Tensor, target: torch.Tensor, spans: Sequence[Span]) -> None:
        with torch.cuda.stream(self._stream):
            for at, nbytes in spans:
                target[at : at + nbytes].copy_(source[at : at + nbytes], non_blocking=True)
        self._stream.synchronize()


class GpuFlush:
    """For GPUs to which a NIC's writes may be seen out of order."""

    def __init__(self, device: int) -> None:
        self._device = device

    def settle(self, spans: Sequence[Span]) -> None:
        """Let kernels see all that has come."""
        cuda_driver.use(self._device)
        cuda_driver.flush_rdma_writes()


def _by_dmabuf(ports: Sequence[Port], address: int, nbytes: int) -> list[Region]:
    """NICs address a dmabuf by offsets in it. It is of whole pages."""
    begin = address // mmap.PAGESIZE * mmap.PAGESIZE
    length = -(-(address + nbytes - begin) // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = cuda_driver.dmabuf(begin, length)
    regions: list[Region] = []
    try:
        for port in ports:
            registration = DmaBufMR(port.pd, nbytes, ACCESS, fd, address - begin)
            regions.append(Region(address - begin, registration.lkey, registration.rkey, registration))
    except PyverbsError as error:
        for region in regions:
            region.registration.close()
        raise TransferError(f"{port.address.name} does not register it: {error}") from None
    finally:
        os.close(fd)
    return regions
