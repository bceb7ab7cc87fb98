"""GPU pools, and a second engine in a process of its own, for tests on machines with GPUs."""

import asyncio
import multiprocessing
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

import torch

from engine.errors import TransferError
from engine.transfer.transports.cuda_driver import CudaError, Kernel
from engine.transfer.transports.cuda_ipc import CudaIpcTransport, CudaIpcWriter

_SPAWN = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
_SLEEP_CYCLES = 500_000_000  # about a quarter of a second


@dataclass
class GpuPool:
    """Zeroed blocks."""

    tensor: torch.Tensor
    nbytes: int
    probe: bytes


def gpu_pool(device: str, blocks: int, block_bytes: int) -> GpuPool:
    """A pool with its probe behind the last block."""
    probe, nbytes = secrets.token_bytes(16), blocks * block_bytes
    memory = torch.zeros(nbytes + len(probe), dtype=torch.uint8, device=device)
    memory[nbytes:] = torch.tensor(list(probe), dtype=torch.uint8)
    torch.cuda.synchronize(device)
    return GpuPool(memory[:nbytes].view(blocks, block_bytes), nbytes, probe)


def kv(blocks: int, block_bytes: int) -> torch.Tensor:
    """What a prefill process has in its pool: random, but the same for all."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (blocks, block_bytes), dtype=torch.uint8, generator=generator)


class Engine:
    """A process, and the pipe over which it is told what to do."""

    def __init__(self, main: Any, *args: Any) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=main, args=(theirs, *args))
        self._process.start()
        theirs.close()

    async def does(self, *words: Any) -> Any:
        """Tell it something, and wait for what it says."""
        self._pipe.send(words)
        return await asyncio.to_thread(self._hear)

    def kill(self) -> None:
        """Kill it, and do not wait."""
        self._process.kill()

    def end(self) -> None:
        """Kill it, and wait for its end."""
        self._process.kill()
        self._process.join(20)
        self._pipe.close()

    def _hear(self) -> Any:
        if not self._pipe.poll(60):
            raise TimeoutError("the other process has said nothing for 60 s")
        return self._pipe.recv()


@asynccontextmanager
async def engine(device: str, blocks: int, block_bytes: int) -> AsyncIterator[Engine]:
    """An engine with a pool full of kv(), for both roles. Asked `does(name of a function below without _, ...)`."""
    process = Engine(_main, device, blocks, block_bytes)
    try:
        yield process
    finally:
        process.end()


def _main(pipe: Connection, device: str, blocks: int, block_bytes: int) -> None:
    asyncio.run(_Serving(pipe, device, blocks, block_bytes).serve())


class _Serving:
    def __init__(self, pipe: Connection, device: str, blocks: int, block_bytes: int) -> None:
        self._pipe = pipe
        self._pool = gpu_pool(device, blocks, block_bytes)
        self._pool.tensor.copy_(kv(blocks, block_bytes))
        torch.cuda.synchronize(device)
        torch.cuda.set_device(device)
        self._transport = CudaIpcTransport(self._pool)
        self._writer: CudaIpcWriter | None = None

    async def serve(self) -> None:
        while True:
            verb, *args = await asyncio.to_thread(self._pipe.recv)
            try:
                answer = await getattr(self, f"_{verb}")(*args)
            except TransferError as error:
                answer = f"TransferError: {error}"
            self._pipe.send(answer)

    async def _start(self) -> None:
        await self._transport.start()

    async def _offer(self) -> bytes:
        self._inlet = self._transport.open_inlet()
        return self._inlet.offer

    async def _connect(self, offer: bytes, target: Any) -> str:
        self._writer = await self._transport.connect(offer, target)
        return "connected"

    async def _push(self, source: list[int], target: list[int]) -> int:
        return (await self._writer.push(source, target)).bytes

    async def _push_at_once(self, *pushes: tuple[list[int], list[int]]) -> list[Any]:
        pushed = await asyncio.gather(*(self._writer.push(*push) for push in pushes), return_exceptions=True)
        return [str(push) if isinstance(push, TransferError) else push.bytes for push in pushed]

    async def _push_but_fail(self, source: list[int], target: list[int]) -> int:
        def fail(*_: object) -> None:
            raise CudaError("out of luck")

        with patch.object(Kernel, "launch", fail):
            return await self._push(source, target)

    async def _push_what_is_being_computed(self, value: int) -> bool:
        computed = self._compute(value)
        await self._writer.push([1], [2], computed)
        return computed.query()

    async def _cancel_a_push(self, value: int) -> str:
        computed = self._compute(value)
        push = asyncio.create_task(self._writer.push([1], [2], computed))
        await asyncio.sleep(0)
        push.cancel()
        try:
            await push
        except asyncio.CancelledError:
            return "ended" if computed.query() else "raised too early"
        return "not cancelled"

    async def _push_without_end(self) -> str:
        everything = list(range(len(self._pool.tensor)))
        shuffled = everything[::2] + everything[1::2]  # no two neighbours
        await self._writer.push(shuffled, shuffled)
        self._forever = asyncio.create_task(self._keep_pushing(shuffled))
        return "pushing"

    async def _keep_pushing(self, blocks: list[int]) -> None:
        while True:
            self._pool.tensor.add_(1)
            torch.cuda.synchronize()
            await self._writer.push(blocks, blocks)

    async def _close(self) -> str:
        await self._writer.close()
        return "closed"

    def _compute(self, value: int) -> torch.cuda.Event:
        torch.cuda._sleep(_SLEEP_CYCLES)
        self._pool.tensor[1].fill_(value)
        computed = torch.cuda.Event()
        computed.record()
        return computed
