"""KV from one GPU's memory to another's on the same host ("ipc"): prefill maps decode's pool and writes into it.

The handle of the pool goes through a hatch, to a process that shows the key; that the engines share a host is proved
by that connection, by the kernel's boot id, and by a probe read through the mapping. GPUs are told apart by their
UUIDs, since each process counts those that it sees in its own way; the peer's need not be seen by this process.
"""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import torch

from engine.errors import TransferError
from engine.transfer.base import Computed, Pushed, Target
from engine.transfer.transports import cuda_driver
from engine.transfer.transports.cuda_copy import (
    PUSHES_AT_ONCE,
    VECTOR_BYTES,
    BlockCopier,
    Blocks,
    QueuedPush,
    compile_kernel,
)
from engine.transfer.transports.hatch import Hatch, enter, leave, peer_process
from engine.transfer.transports.shm import boot_id
from engine.transfer.waits import finish

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class DevicePool(Protocol):
    """A KV pool in a GPU's memory, in an allocation of the ordinary kind (cudaMalloc)."""

    tensor: torch.Tensor  # [block, ...], contiguous
    nbytes: int
    probe: bytes  # what lies behind the last block, in the same storage


class CudaIpcTransport:
    """Moves KV between pools in the memory of GPUs of one host."""

    name = "ipc"

    def __init__(self, pool: DevicePool) -> None:
        self._pool = pool
        self._own: _Own | None = None

    async def start(self) -> None:
        """Export the pool. TransferError where CUDA cannot, or has not what copying takes."""
        if not self._pool.tensor.is_cuda:
            raise TransferError("its KV pool is not in a GPU's memory")
        with _thread() as thread:
            self._own = await finish(asyncio.get_running_loop().run_in_executor(thread, _prepare, self._pool))

    async def close(self) -> None:
        """Nothing is held."""

    def open_inlet(self) -> "CudaIpcInlet":
        """Make the way in for one prefill engine."""
        return CudaIpcInlet(self._started())

    async def connect(self, offer: bytes, target: Target) -> "CudaIpcWriter":
        """Map the pool behind a decode engine's offer. Raises TransferError with the reason."""
        try:
            terms = msgspec.msgpack.decode(offer, type=_Offer)
        except msgspec.DecodeError as error:
            raise TransferError(f"its GPU memory offer is malformed: {error}") from None
        if terms.boot_id != boot_id():
            raise TransferError("another host (their boot ids differ)")
        if any(value % VECTOR_BYTES for value in target.fit):
            raise TransferError(f"the parts of a block do not lie at multiples of {VECTOR_BYTES} bytes: {target.fit}")
        own = self._started()
        sock, grant = await enter(terms.socket, terms.key)
        writer = CudaIpcWriter(sock, own, target)
        try:
            if peer_process(sock) == os.getpid():
                raise TransferError("it is this very process, and CUDA does not map a process's own memory")
            await writer.open(terms.gpu, terms.probe, msgspec.msgpack.decode(grant, type=_Grant))
        except BaseException:
            await writer.close()
            raise
        return writer

    def _started(self) -> "_Own":
        if self._own is None:
            raise ValueError("the transport has not been started")
        return self._own


class CudaIpcInlet:
    """Hands the pool's handle to the one prefill engine that shows the key, then watches for its end."""

    def __init__(self, own: "_Own") -> None:
        self._hatch = Hatch(msgspec.msgpack.encode(_Grant(own.exported.handle, own.exported.offset)))
        self.offer = msgspec.msgpack.encode(_Offer(boot_id(), self._hatch.name, self._hatch.key, own.gpu, own.probe))

    async def drained(self) -> None:
        """Admit no writer from now on; return when none is left."""
        await self._hatch.left()

    def close(self) -> None:
        """Let go of the sockets."""
        self._hatch.close()


class CudaIpcWriter:
    """Writes blocks into a mapped pool, in one thread: in order, the next push queued before the last has ended."""

    def __init__(self, sock: socket.socket, own: "_Own", target: Target) -> None:
        self._sock = sock
        self._own = own
        self._target = target
        self._base: int | None = None  # of the peer's allocation, while it is mapped
        self._copier: BlockCopier | None = None
        self._failure: Exception | None = None
        self._asked: deque[_Push] = deque()
        self._queued: deque[QueuedPush | TransferError] = deque()
        self._thread = _thread()

    async def open(self, gpu: str, probe: bytes, grant: "_Grant") -> None:
        """Map the peer's pool. Raises TransferError with the reason; close() is due then, too."""
        try:
            await self._in_thread(self._map, gpu, probe, grant)
        except RuntimeError as error:  # torch's
            raise TransferError(f"its GPU memory cannot be used: {error}") from error

    @property
    def failed(self) -> bool:
        """Whether it is of no use any more."""
        return self._failure is not None

    async def push(self, source: Sequence[int], target: Sequence[int], after: Computed | None = None) -> Pushed:
        """Copy block source[i] to the peer's block target[i]; returns, or raises, when nothing is being written."""
        copier = self._copier
        if copier is None:
            raise TransferError("its memory is no longer mapped")
        self._asked.append(_Push(source, target, after))
        seconds = await self._in_thread(self._finish_next, copier)
        return Pushed(len(source) * self._target.fit.nbytes, seconds)

    async def close(self) -> None:
        """Wait for the pushes in flight, unmap, then take leave: decode knows that nobody writes."""
        self._copier = None
        try:
            await self._in_thread(self._unmap)
        finally:
            self._thread.shutdown(wait=False)
            leave(self._sock)

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await finish(asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments))

    def _map(self, gpu: str, probe: bytes, grant: "_Grant") -> None:
        own = self._own
        cuda_driver.use(own.device)
        seen = _visible_gpus()
        check_reach(own.gpu, gpu, seen, lambda other: torch.cuda.can_device_access_peer(own.device, other))
        try:
            self._base = cuda_driver.open_handle(grant.handle)
        except TransferError as error:
            hint = "" if gpu in seen else "; this process does not see that GPU (CUDA_VISIBLE_DEVICES)"
            raise TransferError(f"the memory of {gpu} cannot be mapped: {error}{hint}") from None
        blocks, fit = self._target.num_blocks, self._target.fit
        pool, nbytes = self._base + grant.offset, blocks * fit.target_stride
        mapped = cuda_driver.extent(self._base).nbytes
        if mapped < grant.offset + nbytes + len(probe):
            raise TransferError(f"its GPU memory has {mapped} bytes, less than {blocks} blocks")
        if cuda_driver.read(pool + nbytes, len(probe)) != probe:
            raise TransferError("its GPU memory is not the pool that it offered")
        ours = Blocks(own.address, own.nbytes // fit.source_stride)
        self._copier = BlockCopier(own.kernel, ours, Blocks(pool, blocks), fit, torch.device("cuda", own.device))

    def _finish_next(self, copier: BlockCopier) -> float:
        """Queue what has been asked for, then wait for the oldest: each call ends one push, in the order of calls."""
        while self._asked and len(self._queued) < PUSHES_AT_ONCE:
            self._queued.append(self._queue(copier, self._asked.popleft()))
        push = self._queued.popleft()
        if isinstance(push, TransferError):
            raise push
        try:
            return push.wait()
        except Exception as error:
            self._failure = error
            raise _copy_failed(error) from error

    def _queue(self, copier: BlockCopier, push: "_Push") -> QueuedPush | TransferError:
        if self._failure is not None:
            return TransferError(f"an earlier push failed: {self._failure}")
        try:
            return copier.queue(*push)
        except Exception as error:
            self._failure = error
            return _copy_failed(error)

    def _unmap(self) -> None:
        if self._base is None:
            return
        base, self._base = self._base, None
        try:
            cuda_driver.close_handle(base)
        except cuda_driver.CudaError as error:  # of a GPU context that a failure has ended, and its mappings with it
            logger.warning("a decode engine's GPU memory cannot be unmapped: %s", error)


class _Push(NamedTuple):
    """What push() has been asked for."""

    source: Sequence[int]
    target: Sequence[int]
    after: Computed | None


class _Own(NamedTuple):
    """This engine's pool, ready to be mapped and to be read."""

    device: int  # as torch counts in this process
    gpu: str  # UUID
    address: int
    nbytes: int
    probe: bytes
    exported: cuda_driver.Exported
    kernel: cuda_driver.Kernel


class _Offer(msgspec.Struct, frozen=True):
    boot_id: str  # of the kernel: containers of one host have the same
    socket: str
    key: bytes
    gpu: str  # UUID
    probe: bytes  # what lies behind the pool's last block


class _Grant(msgspec.Struct, frozen=True):
    handle: bytes
    offset: int  # of the pool in what the handle maps


def check_reach(own: str, peer: str, seen: Mapping[str, int], can_access: Callable[[int], bool]) -> None:
    """Raise TransferError where it is known that one GPU cannot write another's memory. GPUs are named by UUID.

    `seen` are this process's GPUs, with the numbers that they have here. Of others nothing is known before mapping.
    """
    if peer != own and peer in seen and not can_access(seen[peer]):
        raise TransferError(f"{own} has no peer access to {peer} (`nvidia-smi topo -p2p w` says why)")


def _prepare(pool: DevicePool) -> _Own:
    device, address = pool.tensor.device.index, pool.tensor.data_ptr()
    cuda_driver.use(device)
    exported = cuda_driver.export(address)
    whole = cuda_driver.extent(address)
    has_room = whole.base + whole.nbytes >= address + pool.nbytes + len(pool.probe)
    if not has_room or cuda_driver.read(address + pool.nbytes, len(pool.probe)) != pool.probe:
        raise ValueError("the KV pool has no probe behind its last block")
    return _Own(device, _uuid(device), address, pool.nbytes, pool.probe, exported, compile_kernel())


def _copy_failed(error: Exception) -> TransferError:
    return TransferError(f"a copy into its GPU memory failed: {error}")


def _visible_gpus() -> dict[str, int]:
    return {_uuid(device): device for device in range(torch.cuda.device_count())}


def _uuid(device: int) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="kv-push")
