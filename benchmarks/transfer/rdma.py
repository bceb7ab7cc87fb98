"""The rdma transport beside perftest's ib_write_bw, on one NIC that reaches itself, in turn.

    python -m benchmarks.transfer.rdma [--nic rxe0] [--gid-index 1] [--rounds 3]

Without RDMA hardware: tests/rdma/softroce.sh .venv/bin/python -m benchmarks.transfer.rdma

Two processes each. The transport pushes 64 MiB in blocks of 1 MiB, none of which are neighbours.
"""

import argparse
import asyncio
import mmap
import multiprocessing
import os
import statistics
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from engine.transfer.base import Target
from engine.transfer.blocks import Fit
from engine.transfer.doorway import Doorway
from engine.transfer.transports.rdma.transport import RdmaTransport

_BLOCK = 1 << 20
_BLOCKS = 64
_PUSHES = 8
_ADDRESS = "127.0.0.1"
_PORT = 18515
_TIMEOUT_S = 60


class _Pool:
    """What the transport needs of a KVPool, without torch, which takes long to import on an emulated processor."""

    def __init__(self) -> None:
        self.nbytes = _BLOCK * _BLOCKS
        self.bytes = np.frombuffer(mmap.mmap(-1, self.nbytes), dtype=np.uint8)
        self.tensor = SimpleNamespace(data_ptr=lambda: self.bytes.ctypes.data, is_cuda=False)


def main() -> None:
    """Print the throughput of both, and how they compare."""
    parser = argparse.ArgumentParser(description="The rdma transport beside ib_write_bw.")
    parser.add_argument("--nic", default="rxe0")
    parser.add_argument("--gid-index", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ |= {"KVCACHE_RDMA_NICS": options.nic, "KVCACHE_RDMA_GID_INDEX": str(options.gid_index)}
    perftest, ours = [], []
    for _ in range(options.rounds):
        perftest.append(ib_write_bw(options.nic, options.gid_index))
        ours.append(transport())
        print(f"ib_write_bw {perftest[-1]:8.1f} MB/s   rdma transport {ours[-1]:8.1f} MB/s", flush=True)
    one, other = statistics.median(perftest), statistics.median(ours)
    print(f"median: ib_write_bw {one:.1f} MB/s, rdma transport {other:.1f} MB/s: {other / one:.2f} of it")


def ib_write_bw(nic: str, gid_index: int) -> float:
    """Its average in MB/s (10^6)."""
    command = ["ib_write_bw", "-d", nic, "-x", str(gid_index), "-s", str(_BLOCK), "-n", str(_BLOCKS * _PUSHES), "-F"]
    with subprocess.Popen([*command, "-p", str(_PORT)], stdout=subprocess.DEVNULL):
        _wait_for_listener(_PORT)
        client = subprocess.run(
            [*command, "-p", str(_PORT), _ADDRESS], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    fields = next(line.split() for line in client.stdout.splitlines() if line.split()[:1] == [str(_BLOCK)])
    return float(fields[3]) * 2**20 / 1e6


def _wait_for_listener(port: int) -> None:
    """Its output does not tell: it comes only at the end. A connection would be taken for the client's."""
    deadline = time.monotonic() + _TIMEOUT_S
    while f":{port:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"ib_write_bw does not listen on port {port} after {_TIMEOUT_S} s")
        time.sleep(0.02)


def transport() -> float:
    """Our average in MB/s (10^6)."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    decode = fork.Process(target=_decode, args=(theirs,))
    decode.start()
    try:
        return asyncio.run(_prefill(ours.recv()))
    finally:
        decode.kill()
        decode.join()


def _decode(pipe: Connection) -> None:
    async def serve() -> None:
        doorway = Doorway()
        await doorway.open(_ADDRESS, 0)
        transport = RdmaTransport(_Pool(), doorway)  # type: ignore[arg-type]
        await transport.start()
        inlet = transport.open_inlet()
        pipe.send(inlet.offer)
        await asyncio.Event().wait()

    asyncio.run(serve())


async def _prefill(offer: bytes) -> float:
    transport = RdmaTransport(_Pool(), Doorway())  # type: ignore[arg-type]
    await transport.start()
    fit = Fit(_BLOCK, _BLOCK, 0, 0, _BLOCK)
    writer = await transport.connect(offer, Target(_ADDRESS, _BLOCKS, fit))
    source = [*range(0, _BLOCKS, 2), *range(1, _BLOCKS, 2)]
    await writer.push(source, source[::-1])
    pushed = await asyncio.gather(*(writer.push(source, source[::-1]) for _ in range(_PUSHES)))
    await writer.close()
    await transport.close()
    return sum(push.bytes for push in pushed) / sum(push.seconds for push in pushed) / 1e6


if __name__ == "__main__":
    main()
