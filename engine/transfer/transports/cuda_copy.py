"""Many blocks from one GPU's memory to another's, nearly as fast as one large copy.

Large runs go to the copy engines, in batches on several streams, since an engine pauses between two copies; they leave
the multiprocessors to the kernels of prefill. An engine needs about a microsecond for a copy however small it is, so
small runs are copied by a kernel, of few thread blocks, which saturate the link all the same. A push is queued part by
part, and behind the push before it, so that what Python does for it happens while the GPU copies.
Measured with benchmarks/transfer/cuda_ipc.py.
"""

import ctypes
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from engine.errors import TransferError
from engine.transfer.base import Computed
from engine.transfer.blocks import Fit
from engine.transfer.transports import cuda_driver

VECTOR_BYTES = 16  # what a thread of the kernel loads at once: the addresses and sizes of blocks are multiples of it
PUSHES_AT_ONCE = 2  # one that is copied, and one that is queued behind it

_ENGINE_RUN_BYTES = 1 << 20  # on average; from there on the copy engines are faster
_LANES = 4  # streams with copies for the engines
_GRID, _THREADS, _PIECE_BYTES = 40, 512, 32 << 10  # a piece: four vectors a thread
_FIRST_PART_BYTES, _PART_BYTES = 32 << 20, 128 << 20  # a tenth and a third of a millisecond on NVLink
_TABLE = 16 << 10  # places that there is room for from the beginning

_KERNEL = r"""
extern "C" __global__ void copy_blocks(char* target, const char* source, const long long* places, unsigned blocks,
                                       unsigned block_bytes, unsigned piece_bytes) {
  const unsigned vectors = 4;  // of a thread on their way at once
  const unsigned pieces = (block_bytes + piece_bytes - 1) / piece_bytes;
  for (unsigned task = blockIdx.x; task < blocks * pieces; task += gridDim.x) {
    const unsigned block = task / pieces, begin = task % pieces * piece_bytes;
    const unsigned count = min(piece_bytes, block_bytes - begin) / sizeof(int4);
    const int4* from = (const int4*)(source + places[block] + begin);
    int4* to = (int4*)(target + places[blocks + block] + begin);
    for (unsigned i = threadIdx.x; i < count; i += vectors * blockDim.x) {
      int4 data[vectors];
#pragma unroll
      for (unsigned v = 0; v < vectors; v++)
        if (i + v * blockDim.x < count) data[v] = __ldcs(from + i + v * blockDim.x);
#pragma unroll
      for (unsigned v = 0; v < vectors; v++)
        if (i + v * blockDim.x < count) to[i + v * blockDim.x] = data[v];
    }
  }
}
"""


class Blocks(NamedTuple):
    """A pool in device memory, as this process sees it."""

    address: int
    num_blocks: int


class Places(NamedTuple):
    """Pieces of one size, by their places in the two pools."""

    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    nbytes: int  # of each


class Runs(NamedTuple):
    """Runs of bytes, by their places in the two pools."""

    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    nbytes: npt.NDArray[np.int64]


def places(source: Sequence[int], target: Sequence[int], fit: Fit, own_blocks: int, peer_blocks: int) -> Places:
    """Where the bytes of block source[i] and of block target[i] are. TransferError where there is no such block."""
    own, peer = np.asarray(source, dtype=np.int64), np.asarray(target, dtype=np.int64)
    if len(own) != len(peer):
        raise TransferError(f"{len(own)} blocks cannot be copied to {len(peer)} places")
    _check_blocks(own, own_blocks, "prefill")  # a kernel that writes beyond a mapping would end this process's CUDA
    _check_blocks(peer, peer_blocks, "decode")
    return Places(own * fit.source_stride + fit.source_offset, peer * fit.target_stride + fit.target_offset, fit.nbytes)


def merged(pieces: Places) -> Runs:
    """The same bytes; neighbours whose targets are neighbours too become one run."""
    source, target, nbytes = pieces
    joined = (source[1:] - source[:-1] == nbytes) & (target[1:] - target[:-1] == nbytes)
    if not joined.any():
        return Runs(source, target, np.full(len(source), nbytes))
    first = np.flatnonzero(np.concatenate(([True], ~joined)))
    counts = np.diff(np.append(first, len(source)))
    return Runs(source[first], target[first], counts * nbytes)


def parts(blocks: int, block_bytes: int) -> Iterator[slice]:
    """Cut a push into parts, of which the first are short, so that the GPU begins soon."""
    begin, nbytes = 0, _FIRST_PART_BYTES
    while begin < blocks:
        end = begin + max(1, nbytes // block_bytes)
        yield slice(begin, end)
        begin, nbytes = end, min(2 * nbytes, _PART_BYTES)


class BlockCopier:
    """Copies from one pool to a mapped one, on streams of its own. Belongs to one thread, which has called use()."""

    def __init__(self, kernel: cuda_driver.Kernel, own: Blocks, peer: Blocks, fit: Fit, device: torch.device) -> None:
        self._kernel = kernel
        self._own, self._peer, self._fit = own, peer, fit
        self._lanes = [torch.cuda.Stream(device) for _ in range(_LANES)]  # type: ignore[no-untyped-call]
        self._streams = [lane.cuda_stream for lane in self._lanes]
        self._pushes = itertools.cycle([QueuedPush(device) for _ in range(PUSHES_AT_ONCE)])

    def queue(self, source: Sequence[int], target: Sequence[int], after: Computed | None) -> "QueuedPush":
        """Queue the copies of block source[i] to block target[i], for when `after` has ended and earlier ones have.

        At most PUSHES_AT_ONCE may be queued and not waited for. When it raises, none of its copies is being made.
        """
        push = next(self._pushes)
        push.make_room(2 * len(source))
        _wait(self._lanes[0], after)
        push.mark_begin(self._lanes)
        try:
            for part in parts(max(len(source), len(target)), self._fit.nbytes):
                blocks = self._own.num_blocks, self._peer.num_blocks
                self._queue(push, places(source[part], target[part], self._fit, *blocks), part.start)
        except BaseException:
            push.mark_end(self._lanes)
            push.wait()  # some may have been queued
            raise
        push.mark_end(self._lanes)
        return push

    def _queue(self, push: "QueuedPush", pieces: Places, first: int) -> None:
        runs = merged(pieces)
        large = len(pieces.source) * pieces.nbytes >= _ENGINE_RUN_BYTES * len(runs.source)
        if large and cuda_driver.copies_in_batches():
            copies = np.stack((runs.target + self._peer.address, runs.source + self._own.address, runs.nbytes))
            cuda_driver.copy_in_batches(copies, self._streams)
        else:
            self._queue_kernel(pieces, push.upload(pieces, first, self._streams[0]))

    def _queue_kernel(self, pieces: Places, table: int) -> None:
        self._kernel.launch(
            _GRID,
            _THREADS,
            self._streams[0],
            ctypes.c_uint64(self._peer.address),
            ctypes.c_uint64(self._own.address),
            ctypes.c_uint64(table),
            ctypes.c_uint(len(pieces.source)),
            ctypes.c_uint(pieces.nbytes),
            ctypes.c_uint(_PIECE_BYTES),
        )


class QueuedPush:
    """What a push needs until it has been copied: its table of places, and the marks of its begin and its end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends = [torch.cuda.Event() for _ in range(1, _LANES)]  # type: ignore[no-untyped-call]
        self._begin = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._make_table(_TABLE)

    def make_room(self, places: int) -> None:
        """Have a table of at least so many places."""
        if places > len(self._table):
            self._make_table(places)

    def upload(self, pieces: Places, first: int, stream: int) -> int:
        """The address of the part's places in device memory; each part has its own room, since others may be in use."""
        begin, count = 2 * first, 2 * len(pieces.source)
        np.concatenate((pieces.source, pieces.target), out=self._staging_words[begin : begin + count])
        offset, nbytes = begin * self._table.itemsize, count * self._table.itemsize
        address = self._table.data_ptr() + offset
        cuda_driver.upload(address, self._staging.data_ptr() + offset, nbytes, stream)
        return address

    def mark_begin(self, lanes: Sequence[torch.cuda.Stream]) -> None:
        """Begin in all lanes when the first one has come here."""
        self._begin.record(lanes[0])
        for lane in lanes[1:]:
            lane.wait_event(self._begin)

    def mark_end(self, lanes: Sequence[torch.cuda.Stream]) -> None:
        """End in the first lane when all have come here."""
        for lane, end in zip(lanes[1:], self._ends, strict=True):
            end.record(lane)
            lanes[0].wait_event(end)
        self._end.record(lanes[0])

    def wait(self) -> float:
        """Wait for the end; returns the seconds since the begin.

        Asleep for what comes before the copies, then awake, since being woken may take longer than these.
        """
        self._begin.synchronize()
        self._end.synchronize()
        milliseconds: float = self._begin.elapsed_time(self._end)
        return milliseconds / 1e3

    def _make_table(self, places: int) -> None:
        self._staging = torch.empty(places, dtype=torch.int64, pin_memory=True)
        self._staging_words = self._staging.numpy()
        self._table = torch.empty(places, dtype=torch.int64, device=self._device)


def compile_kernel() -> cuda_driver.Kernel:
    """The kernel for small runs, for the GPU in use. Raises CudaError."""
    return cuda_driver.Kernel(_KERNEL, "copy_blocks")


def _check_blocks(blocks: npt.NDArray[np.int64], count: int, side: str) -> None:
    if (blocks.view(np.uint64) >= count).any():  # as unsigned, a negative number is a large one
        raise TransferError(f"{side} has {count} KV blocks: there is no block {blocks.min()} or {blocks.max()}")


def _wait(stream: torch.cuda.Stream, after: Computed | None) -> None:
    if isinstance(after, torch.cuda.Event):
        stream.wait_event(after)
    elif after is not None:
        after.synchronize()
