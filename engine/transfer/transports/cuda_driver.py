"""What torch does not offer of CUDA: memory mapped across processes, copies in batches, kernels compiled at run time.

ctypes over the driver, libcuda, and over NVRTC, which torch brings along: nothing is compiled when this is installed.
Calls work on the GPU that use() has named in the calling thread.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from engine.errors import TransferError

Words = npt.NDArray[np.int64]  # addresses and sizes

_DRIVER = "libcuda.so.1"
_HANDLE_BYTES = 64
_LAZY_ENABLE_PEER_ACCESS = 1  # the only flag there is for cuIpcOpenMemHandle
_IS_LEGACY_CUDA_IPC_CAPABLE = 10  # of CUpointer_attribute
_RDMA_WRITES_ORDERING = 118  # of CUdevice_attribute
_DMA_BUF_SUPPORTED = 124  # of CUdevice_attribute
_DMA_BUF_FD = 1  # of CUmemRangeHandleType
_CURRENT_CONTEXT = 0  # of CUflushGPUDirectRDMAWritesTarget
_ORDERED_FOR_OWNER = 100  # of CUGPUDirectRDMAWritesOrdering and CUflushGPUDirectRDMAWritesScope
_ORDER_STREAM = 1  # of CUmemcpySrcAccessOrder: read the source when the stream has come to the copy, not before


class CudaError(TransferError):
    """CUDA refused, or something failed on the GPU."""


class Exported(NamedTuple):
    """Memory as another process can map it: a handle is for a whole allocation."""

    handle: bytes
    offset: int  # of the memory in its allocation


class Extent(NamedTuple):
    """An allocation."""

    base: int
    nbytes: int


def use(device: int) -> None:
    """Make a GPU the calling thread's, for torch and for the calls below; `device` counts as torch does."""
    torch.cuda.set_device(device)
    _call("cuCtxSetCurrent", _primary_context(device))


def export(address: int) -> Exported:
    """A handle of device memory. CudaError where it is memory that CUDA cannot export."""
    exportable = ctypes.c_int()
    _call(
        "cuPointerGetAttribute",
        ctypes.byref(exportable),
        ctypes.c_int(_IS_LEGACY_CUDA_IPC_CAPABLE),
        ctypes.c_uint64(address),
    )
    if not exportable.value:
        raise CudaError(
            "the KV pool lies in memory that CUDA cannot export to another process: "
            "take expandable_segments:True out of PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF"
        )
    handle = _Handle()
    _call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
    return Exported(bytes(handle), address - extent(address).base)


def open_handle(handle: bytes) -> int:
    """Map another process's allocation; returns its base. The driver counts how often a handle has been opened."""
    if len(handle) != _HANDLE_BYTES:
        raise CudaError(f"a handle of GPU memory has {_HANDLE_BYTES} bytes, not {len(handle)}")
    base = ctypes.c_uint64()
    flags = ctypes.c_uint(_LAZY_ENABLE_PEER_ACCESS)
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(base), _Handle.from_buffer_copy(handle), flags)
    return base.value


def close_handle(base: int) -> None:
    """Undo one open_handle()."""
    _call("cuIpcCloseMemHandle", ctypes.c_uint64(base))


def extent(address: int) -> Extent:
    """The allocation that holds an address."""
    base, nbytes = ctypes.c_uint64(), ctypes.c_size_t()
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(nbytes), ctypes.c_uint64(address))
    return Extent(base.value, nbytes.value)


def dmabuf(address: int, nbytes: int) -> int:
    """A descriptor of device memory, of whole pages, by which other devices reach it; the caller closes it."""
    if not _attribute(_DMA_BUF_SUPPORTED, torch.cuda.current_device()):
        raise CudaError("the driver has no dmabuf: that takes NVIDIA's open kernel modules")
    fd, no_flags = ctypes.c_int(-1), ctypes.c_ulonglong(0)
    _call(
        "cuMemGetHandleForAddressRange",
        ctypes.byref(fd),
        ctypes.c_uint64(address),
        ctypes.c_size_t(nbytes),
        ctypes.c_int(_DMA_BUF_FD),
        no_flags,
    )
    return fd.value


def orders_rdma_writes(device: int) -> bool:
    """Whether what a NIC has written is seen by kernels of that GPU as soon as the NIC tells of it."""
    return _attribute(_RDMA_WRITES_ORDERING, device) >= _ORDERED_FOR_OWNER


def flush_rdma_writes() -> None:
    """Make it so for all that has been written."""
    _call("cuFlushGPUDirectRDMAWrites", ctypes.c_int(_CURRENT_CONTEXT), ctypes.c_int(_ORDERED_FOR_OWNER))


def read(address: int, nbytes: int) -> bytes:
    """Bytes of device memory, as they are now."""
    data = ctypes.create_string_buffer(nbytes)
    _call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(nbytes))
    return data.raw


@functools.cache
def copies_in_batches() -> bool:
    """Whether the driver has copy_in_batches(): that of CUDA 13, or a later one."""
    return hasattr(_library(_DRIVER), "cuMemcpyBatchAsync_v2")


def copy_in_batches(copies: Words, streams: Sequence[int]) -> None:
    """Have the GPU's copy engines make the copies, in any order among themselves, a share of them in each stream.

    The rows are the targets, the sources and the sizes.
    """
    queue, count = _queueing("cuMemcpyBatchAsync_v2"), copies.shape[1]
    row, share = copies.strides[0], -(-count // len(streams))
    address, attributes, attributes_from = copies.ctypes.data, ctypes.byref(_IN_ORDER), ctypes.byref(_FROM_THE_FIRST)
    for first, stream in zip(range(0, count, share), streams, strict=False):
        target = address + first * copies.itemsize
        rows = (ctypes.c_void_p(target + number * row) for number in range(3))
        size, one = ctypes.c_size_t(min(share, count - first)), ctypes.c_size_t(1)
        queue(*rows, size, attributes, attributes_from, one, ctypes.c_void_p(stream))


def upload(address: int, host_address: int, nbytes: int, stream: int) -> None:
    """Copy pinned memory to the GPU, in a stream."""
    pointers = ctypes.c_uint64(address), ctypes.c_void_p(host_address)
    _queueing("cuMemcpyHtoDAsync_v2")(*pointers, ctypes.c_size_t(nbytes), ctypes.c_void_p(stream))


class Kernel:
    """A CUDA C++ kernel, compiled for the GPU in use."""

    def __init__(self, source: str, name: str) -> None:
        self._module = ctypes.c_void_p()
        self._function = ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(self._module), _compiled(source, name))
        _call("cuModuleGetFunction", ctypes.byref(self._function), self._module, name.encode())

    def launch(self, grid: int, threads: int, stream: int, *arguments: "ctypes._SimpleCData[int]") -> None:
        """Queue it in a stream: so many blocks of so many threads."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        shape = [ctypes.c_uint(size) for size in (grid, 1, 1, threads, 1, 1)]
        no_shared_memory = ctypes.c_uint(0)
        queue = _queueing("cuLaunchKernel")
        queue(self._function, *shape, no_shared_memory, ctypes.c_void_p(stream), pointers, None)


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * _HANDLE_BYTES),)


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _CopyAttributes(ctypes.Structure):
    _fields_ = (
        ("srcAccessOrder", ctypes.c_int),
        ("srcLocHint", _Location),
        ("dstLocHint", _Location),
        ("flags", ctypes.c_uint),
    )


_IN_ORDER = _CopyAttributes(srcAccessOrder=_ORDER_STREAM)
_FROM_THE_FIRST = ctypes.c_size_t(0)  # copy on, the attributes apply


@functools.cache
def _primary_context(device: int) -> ctypes.c_void_p:
    """The context that torch uses too; retained for the life of the process."""
    number, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuInit", ctypes.c_uint(0))
    _call("cuDeviceGet", ctypes.byref(number), ctypes.c_int(device))
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
    return context


def _attribute(attribute: int, device: int) -> int:
    number, value = ctypes.c_int(), ctypes.c_int()
    _call("cuDeviceGet", ctypes.byref(number), ctypes.c_int(device))
    _call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), number)
    return value.value


def _compiled(source: str, name: str) -> bytes:
    nvrtc = _library(f"libnvrtc.so.{torch.version.cuda.split('.')[0]}" if torch.version.cuda else "libnvrtc.so")
    major, minor = torch.cuda.get_device_capability()
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture=sm_{major}{minor}".encode())
    program = ctypes.c_void_p()
    _check_nvrtc(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
    try:
        _check_nvrtc(nvrtc, nvrtc.nvrtcCompileProgram(program, len(options), options))
        size = ctypes.c_size_t()
        _check_nvrtc(nvrtc, nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _check_nvrtc(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw


def _check_nvrtc(nvrtc: ctypes.CDLL, result: int) -> None:
    if result:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CudaError(f"NVRTC cannot compile the copy kernel: {nvrtc.nvrtcGetErrorString(result).decode()}")


def _call(function: str, *arguments: object) -> None:
    _check(function, getattr(_library(_DRIVER), function)(*arguments))


@functools.cache
def _queueing(function: str) -> Callable[..., None]:
    """A call that only queues work. It keeps the GIL: to get it back can take longer than the work."""
    call = getattr(_library(_DRIVER, ctypes.PyDLL), function)
    return lambda *arguments: _check(function, call(*arguments))


def _check(function: str, result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        _library(_DRIVER).cuGetErrorString(result, ctypes.byref(text))
        raise CudaError(f"{function}: {text.value.decode() if text.value else result}")


@functools.cache
def _library(name: str, kind: type[ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL:
    try:
        return kind(name)
    except OSError as error:
        raise CudaError(f"{name} cannot be loaded: {error}") from None
