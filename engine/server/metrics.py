"""What the engine publishes to Prometheus: the server's measurements, the core's and the transfer's counters."""

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.scheduler.stats import CoreStats
from engine.transfer.counters import TransferCounters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10)
_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)


class ServerMetrics:
    """One engine's metrics, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._success = Counter(
            "pdctl:request_success",
            "Requests answered to the end, by finish reason.",
            ["finish_reason"],
            registry=self._registry,
        )
        self._first_token = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", _SLOW)
        self._inter_token = self._histogram("inter_token_latency_seconds", "Between a request's tokens.", _FAST)
        self._e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", _SLOW)

    def watch(
        self, stats: Callable[[], CoreStats], transfers: Sequence[TransferCounters], rdma_memory: str | None = None
    ) -> None:
        """Publish the core's and the transfer's counters too, read at each scrape, and how NICs reach the KV pool."""
        if rdma_memory is not None:
            info = Gauge("pdctl:kv_rdma_memory", "How NICs reach the KV pool.", ["memory"], registry=self._registry)
            info.labels(rdma_memory).set(1)
        self._registry.register(_CoreCollector(stats))
        self._registry.register(_TransferCollector(transfers))

    def render(self) -> bytes:
        """Return Prometheus' text format."""
        return generate_latest(self._registry)

    def first_token(self, seconds: float) -> None:
        """Count the wait for a request's first token."""
        self._first_token.observe(seconds)

    def next_tokens(self, seconds: float, count: int) -> None:
        """Count the wait for each of a request's next tokens."""
        for _ in range(count):
            self._inter_token.observe(seconds)

    def finished(self, finish_reason: str, arrived: float) -> None:
        """Count a request answered to the end; ``arrived`` in time.monotonic()."""
        self._success.labels(finish_reason).inc()
        self._e2e.observe(time.monotonic() - arrived)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"pdctl:{name}", text, buckets=buckets, registry=self._registry)


class _CoreCollector(Collector):
    def __init__(self, stats: Callable[[], CoreStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        used = stats.blocks_total - stats.blocks_free
        yield _gauge("num_requests_running", "Sequences being computed.", stats.running)
        yield _gauge("num_requests_waiting", "Requests and reservations that wait.", stats.waiting)
        yield _gauge("num_requests_held", "Prompts computed here whose KV is being delivered.", stats.held)
        yield _gauge("num_requests_reserved", "Reservations whose KV is on its way.", stats.reserved)
        yield _gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0..1.", used / stats.blocks_total)
        yield _gauge("kv_blocks_total", "KV blocks.", stats.blocks_total)
        yield _gauge("kv_blocks_free", "KV blocks that can be had, cached ones among them.", stats.blocks_free)
        yield _counter("prompt_tokens", "Prompt tokens of requests whose prompt is complete.", stats.prompt_tokens)
        yield _counter("generation_tokens", "Tokens generated.", stats.generated_tokens)
        yield _counter("num_preemptions", "Sequences that gave up their blocks.", stats.preemptions)
        yield _by_source(stats)


class _TransferCollector(Collector):
    def __init__(self, transfers: Sequence[TransferCounters]) -> None:
        self._transfers = transfers

    def collect(self) -> Iterator[Metric]:
        labels = ["direction", "transport", "peer"]
        moved = CounterMetricFamily("pdctl:kv_transfer_bytes", "KV bytes moved.", labels=labels)
        spent = CounterMetricFamily("pdctl:kv_transfer_seconds", "Time spent moving KV.", labels=labels)
        pushed = CounterMetricFamily(
            "pdctl:kv_transfer_pushes", "Chunks pushed where sent; prompts delivered where received.", labels=labels
        )
        speed = GaugeMetricFamily(
            "pdctl:kv_transfer_gigabytes_per_second", "KV bytes moved, by the time spent moving them.", labels=labels
        )
        links = GaugeMetricFamily("pdctl:kv_transfer_connections", "Connections to peers.", labels=labels)
        for counters in self._transfers:
            for (transport, peer), pair in counters.pairs.items():
                values = [counters.direction, transport, peer]
                moved.add_metric(values, pair.bytes)
                spent.add_metric(values, pair.seconds)
                pushed.add_metric(values, pair.pushes)
                links.add_metric(values, pair.connected)
                if pair.seconds:
                    speed.add_metric(values, pair.bytes / pair.seconds / 1e9)
        yield from (moved, spent, pushed, speed, links)
        pending, failed = sum(each.pending for each in self._transfers), sum(each.failures for each in self._transfers)
        damaged = sum(each.mismatches for each in self._transfers)
        yield _gauge("kv_transfer_pending", "Requests whose KV is on its way, or waited for.", pending)
        yield _counter("kv_transfer_failed", "Requests whose KV did not arrive.", failed)
        yield _counter("kv_transfer_checksum_mismatches", "Requests whose KV arrived damaged.", damaged)


def _by_source(stats: CoreStats) -> Metric:
    family = CounterMetricFamily(
        "pdctl:prompt_tokens_by_source", "Prompt tokens, by where their KV came from.", labels=["source"]
    )
    family.add_metric(["local_compute"], stats.local_compute)
    family.add_metric(["local_cache_hit"], stats.local_cache_hit)
    family.add_metric(["kv_transfer"], stats.kv_transfer)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pdctl:{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"pdctl:{name}", text, value)
