"""KV from one GPU to another: random blocks beside one large copy, and what pushing costs a prefill that goes on.

python -m benchmarks.transfer.cuda_ipc [--rounds 15] [--overlap-rounds 40]
"""

import argparse
import asyncio
import ctypes
import multiprocessing
import random
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import uvloop

from benchmarks.transfer.prefill import CHUNK_KV_BYTES, CHUNKS, KV_BLOCK_BYTES, Prefill
from engine.transfer.base import Pushed, Target
from engine.transfer.blocks import Fit
from engine.transfer.transports import cuda_driver
from engine.transfer.transports.cuda_ipc import CudaIpcTransport, CudaIpcWriter

PREFILL_GPU, DECODE_GPU = 0, 1
POOL_BYTES = 9 << 28  # 2.25 GiB: whole blocks of all sizes
TOTALS = (1 << 30, 64 << 20)  # bytes in a push
BLOCK_BYTES = tuple(1 << power for power in range(16, 25))
IN_A_ROW = 4
WARM_UP_S = 5.0  # until the GPU's clocks have settled

_PROBE_BYTES = 16


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer.cuda_ipc", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of each push of the curve")
    parser.add_argument("--overlap-rounds", type=int, default=40, help="of each prefill")
    options = parser.parse_args()
    if torch.cuda.device_count() < 2:
        parser.error("two NVIDIA GPUs are needed")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(options))


@dataclass
class GpuPool:
    """Blocks of any size, and the probe behind them."""

    tensor: torch.Tensor
    nbytes: int
    probe: bytes


class Lists(NamedTuple):
    """Which blocks go where."""

    source: list[int]
    target: list[int]


class Decode:
    """The decode engine's process, as the prefill engine's sees it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_decode_main, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    async def does(self, *words: object) -> Any:  # noqa: ANN401 what it says depends on what it is told
        """Tell it something, and wait for what it says."""
        self._pipe.send(words)
        return await asyncio.to_thread(self._pipe.recv)


class Bench:
    """Prefill's side."""

    def __init__(self, decode: Decode, transport: CudaIpcTransport, pool: GpuPool) -> None:
        self.decode = decode
        self._transport = transport
        self._address = pool.tensor.data_ptr()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._mapped = 0

    async def map(self) -> None:
        """Map decode's pool for large_copy(), which goes past the transport."""
        exported: cuda_driver.Exported = await self.decode.does("export")
        self._mapped = cuda_driver.open_handle(exported.handle) + exported.offset

    @asynccontextmanager
    async def writer(self, block_bytes: int) -> AsyncIterator[CudaIpcWriter]:
        """A connection between pools of such blocks."""
        target = Target("", POOL_BYTES // block_bytes, Fit(block_bytes, block_bytes, 0, 0, block_bytes))
        writer = await self._transport.connect(await self.decode.does("offer"), target)
        yield writer
        await writer.close()
        await self.decode.does("drained")

    async def check(self, writer: CudaIpcWriter, lists: Lists, block_bytes: int) -> None:
        """Push once, and compare what has arrived."""
        await self.decode.does("clear")
        await writer.push(*lists)
        await self.compare(lists, block_bytes)

    async def compare(self, lists: Lists, block_bytes: int) -> None:
        """Compare what has arrived with what was sent."""
        if not await self.decode.does("compare", lists, block_bytes):
            raise SystemExit(f"wrong contents: {len(lists.source)} blocks of {block_bytes} bytes")

    def large_copy(self, nbytes: int) -> float:
        """The seconds that one copy takes, made by cuMemcpyAsync."""
        arguments = ctypes.c_uint64(self._mapped), ctypes.c_uint64(self._address), ctypes.c_size_t(nbytes)
        started = time.perf_counter()
        if ctypes.CDLL("libcuda.so.1").cuMemcpyAsync(*arguments, ctypes.c_void_p(self._stream.cuda_stream)):
            raise SystemExit("cuMemcpyAsync failed")
        self._stream.synchronize()
        return time.perf_counter() - started


def random_lists(block_bytes: int, total: int) -> Lists:
    """Blocks scattered over both pools."""
    blocks, count = range(POOL_BYTES // block_bytes), total // block_bytes
    return Lists(random.sample(blocks, count), random.sample(blocks, count))


async def _measure(options: argparse.Namespace) -> None:
    decode = Decode()
    torch.cuda.set_device(PREFILL_GPU)
    pool = _make_pool(PREFILL_GPU)
    pool.tensor.copy_(_contents(PREFILL_GPU))
    transport = CudaIpcTransport(pool)
    await transport.start()
    cuda_driver.use(PREFILL_GPU)
    bench = Bench(decode, transport, pool)
    await bench.map()
    print(f"2 x {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    await _print_curve(bench, options.rounds)
    await _print_overlap(bench, options.overlap_rounds)


async def _print_curve(bench: Bench, rounds: int) -> None:
    print(f"\nGB/s, medians of {rounds} rounds; *in a row*: {IN_A_ROW} pushes, asked for at once.")
    for total in TOTALS:
        print(f"\n{total >> 20:,} MiB in a push:\n")
        print(
            "| block | in a row | a push alone | its copies, by the GPU's clock | one large copy | in a row / large |"
        )
        print("|---:|---:|---:|---:|---:|---:|")
        for block_bytes in BLOCK_BYTES:
            async with bench.writer(block_bytes) as writer:
                await bench.check(writer, random_lists(block_bytes, total), block_bytes)
                rates = await _rates(bench, writer, block_bytes, total, rounds)
            cells = " | ".join(f"{rate:.0f}" for rate in rates)
            print(f"| {_size(block_bytes)} | {cells} | {rates[0] / rates[-1]:.2f} |", flush=True)


async def _rates(bench: Bench, writer: CudaIpcWriter, block_bytes: int, total: int, rounds: int) -> list[float]:
    in_a_row, alone, copies, large = [], [], [], []
    for _ in range(rounds):
        several = [random_lists(block_bytes, total) for _ in range(IN_A_ROW)]
        took, _ = await _timed(*(writer.push(*lists) for lists in several))
        in_a_row.append(took / IN_A_ROW)
        large.append(bench.large_copy(total))
        took, pushed = await _timed(writer.push(*several[0]))
        alone.append(took)
        copies.append(pushed[0].seconds)
    return [total / statistics.median(seconds) / 1e9 for seconds in (in_a_row, alone, copies, large)]


async def _timed(*pushes: Awaitable[Pushed]) -> tuple[float, list[Pushed]]:
    started = time.perf_counter()
    pushed = await asyncio.gather(*pushes)
    return time.perf_counter() - started, pushed


class _Pushing(NamedTuple):
    """What is pushed beside a prefill: each chunk's blocks when they are computed, or others all the time."""

    title: str
    block_bytes: int = 0  # 0: nothing
    all_the_time: bool = False


_PUSHING = (
    _Pushing("nothing"),
    _Pushing("nothing, once more"),
    _Pushing("each chunk's blocks", KV_BLOCK_BYTES),
    _Pushing("each chunk's blocks, in eighths", KV_BLOCK_BYTES // 8),
    _Pushing("blocks, all the time", KV_BLOCK_BYTES, all_the_time=True),
)


async def _print_overlap(bench: Bench, rounds: int) -> None:
    prefill = Prefill(PREFILL_GPU)
    milliseconds: dict[_Pushing, list[float]] = {pushing: [] for pushing in _PUSHING}
    pushed_bytes = dict.fromkeys(_PUSHING, 0)
    warm_until = time.monotonic() + WARM_UP_S
    while time.monotonic() < warm_until:
        await asyncio.to_thread(prefill.run, lambda _: None)
    for _ in range(rounds):
        for pushing in random.sample(_PUSHING, len(_PUSHING)):
            whole, nbytes = await _prefill_beside(bench, prefill, pushing)
            milliseconds[pushing].append(whole / CHUNKS)
            pushed_bytes[pushing] += nbytes
    print(f"\nMedians of {rounds} rounds in random order, {CHUNKS} chunks in each.\n")
    print("| pushed beside it | GB/s pushed | ms for a chunk | quartiles | slower by |\n|---|---:|---:|---:|---:|")
    base = statistics.median(milliseconds[_PUSHING[0]])
    for pushing, took in milliseconds.items():
        low, middle, high = statistics.quantiles(took, n=4)
        rate = pushed_bytes[pushing] / sum(took) / CHUNKS / 1e6
        slower = f"{(middle / base - 1) * 100:+.1f} %"
        print(f"| {pushing.title} | {rate:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} | {slower} |", flush=True)


async def _prefill_beside(bench: Bench, prefill: Prefill, pushing: _Pushing) -> tuple[float, int]:
    """Milliseconds of a prefill, and the bytes pushed meanwhile, whose contents are checked."""
    loop, computed = asyncio.get_running_loop(), asyncio.Queue[torch.cuda.Event]()
    if not pushing.block_bytes:
        return await asyncio.to_thread(prefill.run, lambda _: None), 0
    lists = random_lists(pushing.block_bytes, CHUNK_KV_BYTES)
    pushes = 0
    async with bench.writer(pushing.block_bytes) as writer:
        await bench.decode.does("clear")

        def hand_over(event: torch.cuda.Event) -> None:
            loop.call_soon_threadsafe(computed.put_nowait, event)

        running = asyncio.create_task(asyncio.to_thread(prefill.run, hand_over))
        while not running.done() if pushing.all_the_time else pushes < CHUNKS:
            await writer.push(*lists, None if pushing.all_the_time else await computed.get())
            pushes += 1
        await bench.compare(lists, pushing.block_bytes)
        return await running, pushes * CHUNK_KV_BYTES


def _decode_main(pipe: Connection) -> None:
    torch.cuda.set_device(DECODE_GPU)
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    pool, sent = _make_pool(DECODE_GPU), _contents(DECODE_GPU)
    transport = CudaIpcTransport(pool)
    await transport.start()
    cuda_driver.use(DECODE_GPU)
    while True:
        try:
            verb, *arguments = await asyncio.to_thread(pipe.recv)
        except EOFError:
            return  # prefill's side has ended
        answer: object = None
        if verb == "export":
            answer = cuda_driver.export(pool.tensor.data_ptr())
        elif verb == "offer":
            inlet = transport.open_inlet()
            answer = inlet.offer
        elif verb == "drained":
            await inlet.drained()
        elif verb == "clear":
            pool.tensor.zero_()
        else:
            answer = _equal(sent, pool.tensor, *arguments)
        torch.cuda.synchronize()
        pipe.send(answer)


def _equal(sent: torch.Tensor, arrived: torch.Tensor, lists: Lists, block_bytes: int) -> bool:
    return torch.equal(
        sent.view(-1, block_bytes)[lists.source],
        arrived.view(-1, block_bytes)[lists.target],
    )


def _make_pool(gpu: int) -> GpuPool:
    probe = secrets.token_bytes(_PROBE_BYTES)
    memory = torch.zeros(POOL_BYTES + len(probe), dtype=torch.uint8, device=gpu)
    memory[POOL_BYTES:] = torch.tensor(list(probe), dtype=torch.uint8)
    torch.cuda.synchronize(gpu)
    return GpuPool(memory[:POOL_BYTES], POOL_BYTES, probe)


def _contents(gpu: int) -> torch.Tensor:
    """Random bytes, the same on both GPUs."""
    generator = torch.Generator(gpu).manual_seed(1)
    return torch.randint(0, 256, (POOL_BYTES,), dtype=torch.uint8, device=gpu, generator=generator)


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


if __name__ == "__main__":
    main()
