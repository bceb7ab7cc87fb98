"""What the routers are put under."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from benchmarks.router.client import closed_loop
from benchmarks.router.idle import idle_connections
from benchmarks.router.paced import paced_streams
from benchmarks.router.routers import Endpoint

STREAMS = 256
IDLE = 5000

# The figures' names.
REQUESTS = "req/s"
P50 = "p50, ms"
P99 = "p99, ms"
CPU = "CPU, µs a request"
CHUNK_P50 = "chunk's delay p50, ms"
CHUNK_P99 = "chunk's delay p99, ms"
CHUNK_CPU = "CPU, µs a chunk"
LOST = "lost chunks"
RSS_BEFORE = "memory before, MB"
RSS = "memory, MB"

Measurement = Callable[[Endpoint, str, float], Coroutine[Any, Any, dict[str, float]]]


@dataclass(frozen=True)
class Load:
    """One load; `measure` takes where it goes, a path that answers a GET, and seconds, and returns figures by name."""

    name: str
    title: str
    measure: Measurement


def _closed_loop(connections: int, *, streaming: bool) -> Measurement:
    async def measure(endpoint: Endpoint, live_path: str, seconds: float) -> dict[str, float]:
        before = endpoint.cpu_s()
        result = await closed_loop(endpoint.port, streaming=streaming, connections=connections, seconds=seconds)
        cpu_us = 1e6 * (endpoint.cpu_s() - before) / result.answers
        return {REQUESTS: result.requests_per_s, P50: result.p50_ms, P99: result.p99_ms, CPU: cpu_us}

    return measure


async def _paced(endpoint: Endpoint, live_path: str, seconds: float) -> dict[str, float]:
    before = endpoint.cpu_s()
    result = await paced_streams(endpoint.port, streams=STREAMS, seconds=seconds)
    cpu_us = 1e6 * (endpoint.cpu_s() - before) / result.chunks
    return {CHUNK_P50: result.p50_ms, CHUNK_P99: result.p99_ms, LOST: result.lost, CHUNK_CPU: cpu_us}


async def _idle(endpoint: Endpoint, live_path: str, seconds: float) -> dict[str, float]:
    before = endpoint.rss_mb()
    async with idle_connections(endpoint.port, live_path, IDLE):
        return {RSS_BEFORE: before, RSS: endpoint.rss_mb()}


LOADS = (
    Load("stream64", "64 at once, streaming", _closed_loop(64, streaming=True)),
    Load("plain64", "64 at once, not streaming", _closed_loop(64, streaming=False)),
    Load("stream8", "8 at once, streaming", _closed_loop(8, streaming=True)),
    Load("plain8", "8 at once, not streaming", _closed_loop(8, streaming=False)),
    Load("paced256", f"{STREAMS} streams, a chunk every 20 ms", _paced),
    Load("idle5000", f"{IDLE} idle connections", _idle),
)
