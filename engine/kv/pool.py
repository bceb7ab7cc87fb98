"""The KV cache: one tensor of fixed-size blocks, in memory that another process can map when it is shared."""

import mmap
import os
import secrets
from dataclasses import dataclass
from math import prod
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What one block holds. A block is one contiguous run, and so is a KV head's part of it."""

    num_kv_heads: int
    num_layers: int
    block_size: int  # tokens
    head_dim: int
    dtype: torch.dtype

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """[kv_head, layer, k/v, token, dim]."""
        return (self.num_kv_heads, self.num_layers, 2, self.block_size, self.head_dim)

    @property
    def block_bytes(self) -> int:
        """The size of one block."""
        return prod(self.block_shape) * self.dtype.itemsize

    def describe(self) -> dict[str, int | str]:
        """The layout in plain values: two pools can exchange blocks if and only if these are equal."""
        return {
            "num_kv_heads": self.num_kv_heads,
            "num_layers": self.num_layers,
            "block_size": self.block_size,
            "head_dim": self.head_dim,
            "dtype": str(self.dtype).removeprefix("torch."),
        }


class KVPool:
    """Zeroed blocks in one tensor [block, kv_head, layer, k/v, token, dim]; which of them are free, others know.

    Memory is taken when a block is first written.

    A shared pool lies in a memory file: another process maps ``nbytes`` of ``fd`` (or of /proc/<pid>/fd/<fd>), and
    block ``i`` starts at ``i * layout.block_bytes``. ``probe`` follows the last block, so that a process can see that
    what it maps is this pool. The file has no name, so nothing is left when its users are gone.
    """

    def __init__(self, layout: KVLayout, num_blocks: int, shared: bool = False) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.nbytes = num_blocks * layout.block_bytes
        self.fd: int | None = None
        self.probe = secrets.token_bytes(16)
        _check_available(self.nbytes, num_blocks)
        try:
            flat = torch.frombuffer(self._map(shared), dtype=layout.dtype)
        except (OSError, RuntimeError) as error:
            self.close()
            raise MemoryError(f"cannot allocate {_mib(self.nbytes)} for {num_blocks} KV blocks: {error}") from error
        self.tensor = flat.view(num_blocks, *layout.block_shape)

    def close(self) -> None:
        """Close the memory file. The memory itself goes with the last tensor or process that maps it."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def _map(self, shared: bool) -> mmap.mmap:
        if not shared:
            return mmap.mmap(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.fd = os.memfd_create("pdctl-kv", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.nbytes + len(self.probe))
        os.pwrite(self.fd, self.probe, self.nbytes)
        return mmap.mmap(self.fd, self.nbytes)


def num_blocks_for(
    layout: KVLayout, *, available_bytes: int, max_num_seqs: int, max_model_len: int, fraction: float = 0.1
) -> int:
    """How many blocks to make where the user does not say: a fraction of the memory, at most what can be used.

    At least one sequence of ``max_model_len`` tokens fits; whether the memory carries it, the pool checks.
    """
    one_sequence = -(-max_model_len // layout.block_size)
    affordable = int(available_bytes * fraction) // layout.block_bytes
    return max(one_sequence, min(affordable, one_sequence * max_num_seqs))


def available_memory() -> int:
    """Bytes that this process may still use: the machine's free memory, or what its control group leaves."""
    available = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return available  # no version 2 control group
    if limit == "max":
        return available
    return min(available, max(0, int(limit) - used + int(stat["inactive_file"])))


def _check_available(nbytes: int, num_blocks: int) -> None:
    available = available_memory()
    if nbytes > available:
        raise MemoryError(
            f"{num_blocks} KV blocks need {_mib(nbytes)}, {_mib(available)} are available: "
            "lower --num-gpu-blocks-override or --max-model-len"
        )


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"
