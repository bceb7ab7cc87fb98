"""Transfer between real engine cores, whose runner's tokens depend on every byte of KV: PD must say what mixed says."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing

import pytest
from transfer_harness import (
    BLOCK,
    LAYOUT,
    PREFILL,
    Pair,
    both,
    engines,
    identity,
    kernel_objects,
    request,
    within,
    write_kv,
)

from engine.core import EngineCore
from engine.errors import RequestError
from engine.kv.pool import KVPool
from engine.scheduler.batch import Batch
from engine.scheduler.handoff import Prefilled
from engine.scheduler.request import Request, SamplingParams, Token
from engine.transfer.base import Peer
from engine.transfer.checksum import PoolChecksum
from engine.transfer.receiver import DecodeTransfer
from engine.transfer.sender import PrefillTransfer
from engine.transfer.transports.shm import ShmTransport

MAX_LENGTH = 160


class PoolRunner:
    """Writes KV that tells the token and its position; samples from all the KV that it finds."""

    block_size = BLOCK

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool
        self.num_blocks = pool.num_blocks

    def execute(self, batch: Batch) -> list[list[int]]:
        for source, target in batch.copies:
            self.pool.tensor[target] = self.pool.tensor[source]
        for sequence, start, length, _ in batch.chunks:
            write_kv(self.pool, sequence.block_table, sequence.tokens, start, start + length)
        return [
            [self._sample(sequence.block_table, start + length, sequence.index + i) for i in range(samples)]
            for sequence, start, length, samples in batch.chunks
        ]

    def _sample(self, table: list[int], tokens: int, index: int) -> int:
        kv = self.pool.tensor[table].double().permute(0, 4, 1, 2, 3, 5).flatten(0, 1)[:tokens]
        weights = 1 + (kv.new_ones(tokens).cumsum(0) % 7)
        return int((kv.sum(dim=(1, 2, 3, 4)) * weights).sum().item()) % 9973 + index


class Engine:
    """A core, and what it says."""

    def __init__(self, blocks: int = 256, *, shared: bool = False) -> None:
        self.pool = KVPool(LAYOUT, blocks, shared=shared)
        self.failure: BaseException | None = None
        self.answers: dict[str, Future[list[list[int]]]] = {}
        self._tokens: dict[str, dict[int, list[int]]] = {}
        self._unfinished: dict[str, int] = {}
        self.transfer: PrefillTransfer | None = None
        self.core = EngineCore(
            PoolRunner(self.pool),
            max_num_seqs=8,
            max_batched_tokens=48,
            max_model_len=MAX_LENGTH,
            on_tokens=self._on_tokens,
            on_prefilled=self._on_prefilled,
            on_failure=self._on_failure,
        )

    def expect(self, request: Request) -> "asyncio.Future[list[list[int]]]":
        """The answer to a request that is about to be started."""
        self._tokens[request.request_id] = {i: [] for i in range(request.sampling.n)}
        self._unfinished[request.request_id] = request.sampling.n
        self.answers[request.request_id] = Future()
        return asyncio.wrap_future(self.answers[request.request_id])

    async def idle(self) -> None:
        """Stop; then nothing may be left of any request."""
        await asyncio.to_thread(self.core.stop, 10.0)
        stats = self.core.stats()
        assert self.failure is None
        assert (stats.running, stats.waiting, stats.held, stats.reserved) == (0, 0, 0, 0)
        assert stats.blocks_free == stats.blocks_total
        self.core._scheduler.check()

    def _on_tokens(self, tokens: list[Token]) -> None:
        for token in tokens:
            self._tokens[token.request_id][token.index].append(token.token_id)
            if token.finish_reason is not None:
                self._unfinished[token.request_id] -= 1
                if not self._unfinished[token.request_id]:
                    choices = self._tokens[token.request_id]
                    self.answers[token.request_id].set_result([choices[i] for i in sorted(choices)])

    def _on_prefilled(self, event: Prefilled) -> None:
        assert self.transfer is not None
        self.transfer.on_prefilled(event)

    def _on_failure(self, error: BaseException) -> None:
        self.failure = error


@asynccontextmanager
async def pd_pair(blocks: int) -> AsyncIterator[tuple[Engine, Engine, Peer, DecodeTransfer]]:
    """A prefill and a decode engine with real cores."""
    prefill, decode = Engine(blocks), Engine(blocks, shared=True)
    prefill.transfer = PrefillTransfer(
        [ShmTransport(prefill.pool)], identity(PREFILL, prefill.pool.num_blocks), block_size=BLOCK
    )
    receiver = DecodeTransfer(
        [ShmTransport(decode.pool)], identity("decode", decode.pool.num_blocks), PoolChecksum(decode.pool)
    )
    prefill.transfer.start(prefill.core)
    port = await receiver.start(decode.core, "127.0.0.1", 0)
    prefill.core.start()
    decode.core.start()
    with closing(decode.pool):
        yield prefill, decode, Peer("127.0.0.1", port), receiver
        await within(prefill.transfer.close())
        await within(receiver.close())
        await prefill.idle()
        await decode.idle()


def random_requests(count: int) -> list[Request]:
    """Requests that share beginnings, so that prefix caches on both sides take part."""
    stems = [[random.randrange(1, 5000) for _ in range(64)] for _ in range(3)]
    return [
        Request(
            f"r{i}",
            random.choice(stems)[: random.randrange(1, 64)]
            + [random.randrange(1, 5000) for _ in range(random.randrange(0, 60))],
            SamplingParams(max_tokens=random.randrange(1, 20), n=random.choice([1, 1, 1, 2])),
        )
        for i in range(count)
    ]


async def mixed_answers(requests: list[Request]) -> list[list[list[int]]]:
    """What one engine alone says."""
    engine = Engine()
    engine.core.start()
    answers = [engine.expect(request) for request in requests]
    for one in requests:
        engine.core.submit(one)
    said = await within(asyncio.gather(*answers), 20.0)
    await engine.idle()
    return said


async def test_prefill_and_decode_say_what_one_engine_says():
    requests = random_requests(40)
    expected = await mixed_answers(requests)
    async with pd_pair(256) as (prefill, decode, peer, receiver):
        answers = [decode.expect(request) for request in requests]
        legs = [prefill.transfer.deliver(request, peer) for request in requests]
        legs += [receiver.receive(request, PREFILL) for request in requests]
        await within(asyncio.gather(*legs), 20.0)
        assert await within(asyncio.gather(*answers), 20.0) == expected
        stats = decode.core.stats()
        assert (stats.local_compute, stats.kv_transfer > 0) == (0, True)
        assert stats.kv_transfer + stats.local_cache_hit == sum(len(request.prompt) for request in requests)


@pytest.mark.parametrize("seed", range(3))
async def test_whoever_leaves_whenever_the_others_are_served_right(seed: int):
    random.seed(seed)
    requests = random_requests(40)
    expected = await mixed_answers(requests)
    async with pd_pair(32) as (prefill, decode, peer, receiver):  # few blocks: there is waiting and preemption

        async def serve(request: Request) -> list[list[int]] | None:
            answer = decode.expect(request)
            legs = [
                asyncio.create_task(prefill.transfer.deliver(request, peer)),
                asyncio.create_task(receiver.receive(request, PREFILL)),
            ]
            leaver = random.choice([None, *legs])
            if await both(*legs, cancel=leaver, after=random.random() * 0.2):
                return await answer
            decode.core.abort(request.request_id)
            return None

        said = await within(asyncio.gather(*map(serve, requests)), 30.0)
        served = [(one, two) for one, two in zip(said, expected, strict=True) if one is not None]
        assert len(served) >= 10
        for one, two in served:
            assert one == two


async def test_a_prompt_that_no_core_takes_fails_both_legs_with_its_reason():
    async with pd_pair(16) as (prefill, _, peer, receiver):
        long = request("r", MAX_LENGTH + 1)
        legs = [prefill.transfer.deliver(long, peer), receiver.receive(long, PREFILL)]
        for outcome in await within(asyncio.gather(*legs, return_exceptions=True)):
            assert isinstance(outcome, RequestError)
            assert outcome.status == 400


async def test_a_thousand_transfers_leave_nothing_behind():
    def left(pair: Pair) -> tuple[int, int, int]:
        while not pair.decode_core.cancelled.empty():
            pair.decode_core.cancelled.get_nowait()
        gc.collect()
        return len(gc.get_objects()), *kernel_objects()

    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with engines() as pair:

        async def transfer(i: int) -> None:
            legs = [pair.deliver(request(f"r{i}", 20)), pair.receive(request(f"r{i}", 20))]
            await both(*legs, cancel=None if i % 5 else legs[i // 5 % 2], after=0.001 * (i % 3))

        async def compute() -> None:
            while True:
                await pair.prefill_core.compute_all(await pair.prefill_core.submitted.get())

        async def decode() -> None:
            while True:
                _, reservation, _ = await pair.decode_core.started.get()
                pair.decode_core.finish(reservation)

        async def transfers(numbers: range) -> None:
            for first in range(numbers.start, numbers.stop, 10):
                await within(asyncio.gather(*map(transfer, range(first, first + 10))))

        workers = [asyncio.create_task(compute()), asyncio.create_task(decode())]
        await transfers(range(100))
        objects, *rest = left(pair)
        await transfers(range(100, 1100))
        objects_after, *rest_after = left(pair)
        assert all(now <= then for now, then in zip(rest_after, rest, strict=True))
        assert objects_after - objects < 500
        assert not errors  # such as an exception of a connection's task
        assert pair.decode.counters.pairs["ipc", PREFILL].pushes > 700
        assert (pair.prefill.counters.pending, pair.decode.counters.pending) == (0, 0)
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
