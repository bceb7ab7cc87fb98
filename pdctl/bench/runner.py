"""Sends a workload's requests when they are due, and collects what came of each."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime
from itertools import count
from time import perf_counter
from typing import Any

import aiohttp

from pdctl.bench.answer import Answer
from pdctl.bench.arrivals import arrival_times
from pdctl.bench.client import PATHS, BenchError, base_url, open_session, request_body, stream_answer
from pdctl.bench.records import Record, Result, Tally, Workload


async def run_benchmark(
    workload: Workload, url: str, model: str, *, stop: asyncio.Event | None = None, tally: Tally | None = None
) -> Result:
    """Run ``workload`` against the OpenAI-compatible server at ``url`` (with or without ``/v1``).

    Setting ``stop`` ends it early: what is under way is given up, and the result holds what was answered until then.
    ``tally`` follows it live. Raises `BenchError` where the warm-up fails; failures later on are part of the result.
    """
    async with open_session(workload.timeout_s) as session:
        run = _Run(workload, base_url(url), model, session, tally or Tally())
        stopping = asyncio.ensure_future((stop or asyncio.Event()).wait())
        try:
            if not await _unless_stopped(run.warm_up(), stopping):
                return run.result(interrupted=True)
            run.start()
            finished = await _unless_stopped(run.send_all(), stopping)
            return run.result(interrupted=not finished)
        finally:
            stopping.cancel()


async def _unless_stopped(work: Coroutine[Any, Any, None], stopping: "asyncio.Future[Any]") -> bool:
    """Return whether ``work`` came to its end; it is cancelled where ``stopping`` comes first."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        return False
    task.result()
    return True


class _Run:
    """One run of a workload; owned by one event loop."""

    def __init__(self, workload: Workload, url: str, model: str, session: aiohttp.ClientSession, tally: Tally) -> None:
        self._workload = workload
        self._url, self._model = url, model
        self._session = session
        self._tally = tally
        self._records: list[Record] = []
        self._started_at = datetime.now()
        self._zero = perf_counter()

    async def warm_up(self) -> None:
        """Send the warm-up requests; raise `BenchError` if one fails."""
        bodies = [self._body(-1 - number) for number in range(self._workload.warmup)]
        for answer in await asyncio.gather(*(self._stream(body) for body in bodies)):
            if answer.error_kind is not None:
                raise BenchError(f"the warm-up request to {self._url} failed: {answer.error_kind}: {answer.error}")

    def start(self) -> None:
        """Set the time from which all others are counted; forget what the warm-up brought."""
        self._tally.output_tokens = 0
        self._started_at = datetime.now()
        self._zero = perf_counter()

    async def send_all(self) -> None:
        """Send everything, and wait for the answers."""
        async with asyncio.TaskGroup() as group:
            if self._workload.rate is None:
                planned = self._workload.planned_requests
                indexes = count() if planned is None else iter(range(planned))
                for _ in range(self._workload.concurrency or 1):
                    group.create_task(self._worker(indexes))
            else:
                await self._schedule(self._workload.rate, group)

    def result(self, *, interrupted: bool) -> Result:
        """Return what was measured so far."""
        end = self._now() if interrupted else max((record.done for record in self._records), default=0.0)
        return Result(
            self._workload,
            self._url,
            self._model,
            self._started_at,
            duration=end,
            records=sorted(self._records, key=lambda record: record.intended),
            cancelled=self._tally.sent - self._tally.done,
            interrupted=interrupted,
        )

    async def _worker(self, indexes: Iterator[int]) -> None:
        """Send one request after the other, as one user of a closed loop."""
        for index in indexes:
            due = self._now()
            if self._workload.duration_s is not None and due >= self._workload.duration_s:
                return
            await self._request(self._body(index), due, nullcontext())

    async def _schedule(self, rate: float, group: asyncio.TaskGroup) -> None:
        """Start each request of an open loop when it is due, whatever became of the earlier ones."""
        work = self._workload
        times = arrival_times(work.planned_requests or 0, rate, burstiness=work.burstiness, seed=work.seed)
        cap = asyncio.Semaphore(work.concurrency) if work.concurrency else nullcontext()
        for index, due in enumerate(times):
            body = self._body(index)  # before it is due: a long prompt takes time to build
            await self._sleep_until(due)
            group.create_task(self._request(body, due, cap))
            await asyncio.sleep(0)  # it is sent before the next prompt is built

    async def _request(self, body: bytes, due: float, cap: AbstractAsyncContextManager[None]) -> None:
        woken = self._now()
        async with cap:
            sent = self._now()
            self._tally.sent += 1
            answer = await self._stream(body)
            record = Record(intended=due, queued=sent - woken, sent=sent, done=self._now(), answer=answer)
        self._records.append(record)
        self._tally.count_done(record)

    async def _stream(self, body: bytes) -> Answer:
        return await stream_answer(
            self._session,
            self._url + PATHS[self._workload.endpoint],
            body,
            clock=self._now,
            keep_text=self._workload.keep_texts,
            on_tokens=self._tally.count_tokens,
        )

    def _body(self, index: int) -> bytes:
        work = self._workload
        return request_body(
            work.dataset.prompt(index),
            self._model,
            work.endpoint,
            ignore_eos=work.ignore_eos,
            continuous_usage=work.continuous_usage,
        )

    async def _sleep_until(self, due: float) -> None:
        # More than once: a timer may be early, since uvloop's count whole milliseconds.
        while (delay := due - self._now()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(delay)

    def _now(self) -> float:
        return perf_counter() - self._zero
