"""A hundred thousand requests through a router's process, with mock engines and clients of raw protocols."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import httpx
import psutil
import pytest
import uvloop

from benchmarks.router.answers import within
from benchmarks.router.client import ClosedLoop, LoopConnection
from benchmarks.router.messages import chat_request
from benchmarks.router.routers import CONTENDERS, Endpoint, Options, running

CONNECTIONS = 32
WARM_UP = 20_000
ROUNDS = 10  # after it, each with new connections
REQUESTS = 8_000  # in each
LEAVING = 50  # clients in each that leave at once
SECONDS = 60.0  # that a round may take on a machine that is busy
GROWTH_MB = 5.0


class Counted(ClosedLoop):
    """A closed loop of so many requests, whatever time they take."""

    def __init__(self, *, streaming: bool, requests: int) -> None:
        super().__init__(streaming=streaming, connections=CONNECTIONS, seconds=SECONDS)
        self._sent = CONNECTIONS
        self._requests = requests

    def add(self, now: float, latency: float) -> bool:
        """Count an answer; whether to go on."""
        self.answers += 1
        self._sent += 1
        return self._sent <= self._requests

    def is_over(self, now: float) -> bool:
        """Whether all requests have been sent."""
        return self._sent >= self._requests


async def exchange(port: int, requests: int) -> None:
    """Half of them streaming, half not, at the same time. Every answer is checked."""
    for _ in range(LEAVING):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(chat_request(streaming=True))
        writer.transport.abort()
    loops = [Counted(streaming=streaming, requests=requests // 2) for streaming in (True, False)]
    for loop in loops:
        for _ in range(CONNECTIONS):
            await asyncio.get_running_loop().create_connection(partial(LoopConnection, loop), "127.0.0.1", port)
    await within(asyncio.gather(*(loop.finished for loop in loops)), SECONDS, f"{requests} answers")
    assert sum(loop.answers for loop in loops) == requests


@dataclass
class State:
    """What a router holds."""

    rss_mb: float
    files: int
    instances: list[dict[str, object]]
    metrics: str

    def figure(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = [line.rsplit(" ", 1) for line in self.metrics.splitlines() if not line.startswith("#")]
        return sum(float(value) for key, value in lines if key.partition("{")[0] == f"pdctl_router_{name}")


def look(endpoint: Endpoint) -> State:
    process = psutil.Process(endpoint.process.pid)
    with httpx.Client(base_url=f"http://127.0.0.1:{endpoint.port}", trust_env=False, verify=False) as http:
        instances, metrics = http.get("/instances").json(), http.get("/metrics").text
    return State(endpoint.rss_mb(), process.num_fds(), instances, metrics)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    [contender] = [contender for contender in CONTENDERS if contender.name == "pdctl-builtin"]
    with running(contender, Options(None, workers=1)) as endpoint:
        yield endpoint


def test_a_hundred_thousand_requests_leave_nothing_behind(endpoint: Endpoint):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(exchange(endpoint.port, WARM_UP))
        before = look(endpoint)
        for _ in range(ROUNDS):
            runner.run(exchange(endpoint.port, REQUESTS))
        after = look(endpoint)
    served = after.figure("requests_total") - before.figure("requests_total")
    assert ROUNDS * REQUESTS <= served <= ROUNDS * (REQUESTS + LEAVING)
    assert after.rss_mb - before.rss_mb < GROWTH_MB, f"{before.rss_mb:.1f} MB have become {after.rss_mb:.1f} MB"
    assert after.files <= before.files + 5
    assert after.figure("requests_in_flight") == 0
    assert after.figure("retries_total") == after.figure("leg_failures_total") == 0
    assert len(after.instances) == 4
    for instance in after.instances:
        assert (instance["requests_in_flight"], instance["tokens_in_flight"], instance["state"]) == (0, 0, "ready")
