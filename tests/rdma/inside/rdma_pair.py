"""Two engines' RDMA transports in one process, over the machine's two software NICs."""

import asyncio
import fcntl
import mmap
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from engine.transfer.base import Target
from engine.transfer.blocks import Fit
from engine.transfer.doorway import Doorway
from engine.transfer.transports.rdma.inlet import RdmaInlet
from engine.transfer.transports.rdma.transport import RdmaTransport
from engine.transfer.transports.rdma.writer import RdmaWriter

TIMEOUT_S = 30
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h


def whole_blocks(block: int) -> Fit:
    """Both sides hold the same heads."""
    return Fit(block, block, 0, 0, block)


class Memory:
    """What the transport needs of a KVPool, without torch, which takes long to import here. Forks share it."""

    def __init__(self, nbytes: int, *, random: bool = False) -> None:
        self.nbytes = nbytes
        self.bytes = np.frombuffer(mmap.mmap(-1, nbytes), dtype=np.uint8)
        if random:
            self.bytes[:] = np.frombuffer(np.random.default_rng(1).bytes(nbytes), dtype=np.uint8)
        self.tensor = SimpleNamespace(data_ptr=lambda: self.bytes.ctypes.data, is_cuda=False)


@dataclass
class Pair:
    """A prefill engine that is connected to a decode engine."""

    source: Memory
    target: Memory
    inlet: RdmaInlet
    writer: RdmaWriter


async def within(awaitable: Any, seconds: float = TIMEOUT_S) -> Any:
    """Its result, unless it takes too long."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def until(condition: Callable[[], object], seconds: float = TIMEOUT_S) -> None:
    """Wait for what nobody tells of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.002)


def counter(device: str, name: str) -> int:
    """What the kernel has counted on one of the NICs."""
    return int(Path(f"/sys/class/infiniband/{device}/ports/1/hw_counters/{name}").read_text())


async def moving(device: str) -> None:
    """Wait until that NIC is in the middle of something."""
    before = counter(device, "sent_pkts")
    await until(lambda: counter(device, "sent_pkts") > before + 1000)


@contextmanager
def link_down(interface: str) -> Iterator[None]:
    """Take an interface, and with it its NIC, down for a while: at once, as no program could."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name = interface.encode()
        _, flags = struct.unpack("16sh", fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh", name, 0)))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh", name, flags & ~_IFF_UP))
        try:
            yield
        finally:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh", name, flags))


@asynccontextmanager
async def decode_side(memory: Memory) -> AsyncIterator[RdmaInlet]:
    """A decode engine's way in."""
    doorway = Doorway()
    await doorway.open("127.0.0.1", 0)
    transport = RdmaTransport(memory, doorway)
    await transport.start()
    inlet = transport.open_inlet()
    try:
        yield inlet
    finally:
        await within(inlet.drained())
        inlet.close()
        await transport.close()
        await doorway.close()


@asynccontextmanager
async def prefill_side(memory: Memory, offer: bytes, fit: Fit, blocks: int) -> AsyncIterator[RdmaWriter]:
    """A prefill engine's writer."""
    transport = RdmaTransport(memory, Doorway())
    await transport.start()
    try:
        writer = await within(transport.connect(offer, Target("127.0.0.1", blocks, fit)))
        yield writer
        await within(writer.close())
    finally:
        await transport.close()


@asynccontextmanager
async def connected(nbytes: int, fit: Fit) -> AsyncIterator[Pair]:
    """Both, with pools of that size."""
    source, target = Memory(nbytes, random=True), Memory(nbytes)
    async with (
        decode_side(target) as inlet,
        prefill_side(source, inlet.offer, fit, nbytes // fit.target_stride) as writer,
    ):
        yield Pair(source, target, inlet, writer)
