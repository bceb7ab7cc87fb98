"""The router's figures: all that is counted, each declared in one line."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pdctl.router.figures.prometheus import CONTENT_TYPE as CONTENT_TYPE
from pdctl.router.figures.prometheus import Families

PREFIX = "pdctl_router_"
CLIENT_LEFT = 499  # a status in figures and logs only
OTHER = "other"  # the label of every model that is not served here
MAX_MODELS = 100

# Seconds.
_TTFT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_ITL = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0)
_DURATION = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_QUEUE = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ADDED = (5e-05, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5)


class InstanceFigures(NamedTuple):
    """What this process knows of one engine: its load, as all processes know it, and this process's own calls to it."""

    role: str
    instance: str  # its key
    up: bool
    paused: bool
    draining: bool
    breaker_state: int  # 0 closed, 1 half-open, 2 open
    requests_in_flight: int  # of all processes
    tokens_in_flight: int  # of all processes
    requests: int  # assigned since the start, by this process, as is all that follows
    connections: int
    idle_connections: int
    stale_retries: int
    failures: Mapping[str, int]  # by kind


class Metrics:
    """Counted since the start of this process; `render` adds what other processes counted.

    Labels are subscripts in the declared order: `requests[route, model, status] += 1`, `fallbacks[reason] += 1`,
    `ttft[model].observe(seconds)`. Without labels: `retries.value += 1`, `itl.observe(seconds)`.
    A model's label comes from `ModelNames`. Gauges are set right before `snapshot` and `render`.
    """

    def __init__(self) -> None:
        self._families = families = Families(PREFIX)
        counter, gauge = families.counter, families.gauge
        histogram, histograms = families.histogram, families.histograms
        pair, engine = ("prefill", "decode"), ("role", "instance")

        self.requests = counter(
            "requests_total", ("route", "model", "status"), "Requests answered (status 499: the client left)."
        )
        self.requests_in_flight = gauge("requests_in_flight", (), "Requests being served.")
        self.workers = gauge("workers", (), "Processes that serve requests.", own=True)
        self.workers_reporting = gauge("workers_reporting", (), "Those whose figures are on this page.", own=True)
        self.client_connections = gauge("client_connections", (), "Open connections of clients.")
        self.queue_depth = gauge("queue_depth", ("model",), "Requests that wait for an engine.")

        self.ttft = histograms("ttft_seconds", ("model",), _TTFT, "From a whole request to its answer's first piece.")
        self.itl = histogram("itl_seconds", _ITL, "Between two pieces of a stream.")
        self.duration = histograms(
            "request_duration_seconds", ("model",), _DURATION, "From a whole request to its end, if engines were asked."
        )
        self.queue = histogram("queue_seconds", _QUEUE, "Time in the queue before engines were chosen.")
        self.added_latency = histogram("added_latency_seconds", _ADDED, "The router's own time in a request.")

        self.pairs = counter("pd_requests_total", pair, "Requests sent to a prefill and a decode instance.")
        self.prefill_seconds = histograms("prefill_seconds", pair, (), "Time of prefill legs, by pair.")
        self.decode_seconds = histograms("decode_seconds", pair, (), "Time of decode legs, by pair.")
        self.fallbacks = counter("fallbacks_total", ("reason",), "Requests for a pair that one engine served alone.")
        self.pd_skipped = counter("pd_skipped_total", (), "Requests too short for a pair, sent to one engine.")
        self.cache_hit_tokens = counter(
            "cache_hit_tokens_total", ("role",), "Prompt tokens that the chosen instance was expected to hold."
        )

        self.retries = counter("retries_total", (), "Requests sent to another instance.")
        self.resumes = counter("resumes_total", (), "Streams continued on another instance.")
        self.broken_streams = counter("broken_streams_total", (), "Answers that ended in the middle.")
        self.kv_releases = counter(
            "kv_releases_total", ("outcome",), "KV of prefills whose decode failed, sent to another decode to be freed."
        )
        self.leg_failures = counter(
            "leg_failures_total", ("role", "kind"), "Engine calls without a whole answer, by role and kind."
        )
        self.queue_rejected = counter("queue_rejected_total", ("model", "reason"), "Requests that the queue refused.")
        self.rate_limited = counter("rate_limited_total", ("key",), "Requests over their API key's limits.")
        self.access_log_dropped = counter("access_log_dropped_total", (), "Lines missing in the access log.")

        self._instances = {
            "up": gauge("instance_up", engine, "Whether an instance answers.", own=True),
            "paused": gauge("instance_paused", engine, "Whether an instance is paused.", own=True),
            "draining": gauge("instance_draining", engine, "Whether an instance is drained.", own=True),
            "breaker_state": gauge(
                "instance_breaker_state", engine, "Circuit breaker: 0 closed, 1 half-open, 2 open.", own=True
            ),
            "requests_in_flight": gauge("instance_requests_in_flight", engine, "Requests at an instance.", own=True),
            "tokens_in_flight": gauge(
                "instance_tokens_in_flight", engine, "Estimated prompt tokens at an instance.", own=True
            ),
            "requests": counter("instance_requests_total", engine, "Requests assigned to an instance."),
            "connections": gauge("instance_connections", engine, "Open connections to an instance."),
            "idle_connections": gauge("instance_idle_connections", engine, "Kept-alive connections to an instance."),
            "stale_retries": counter("instance_stale_retries_total", engine, "Stale connections replaced."),
        }
        self._instance_failures = counter(
            "instance_failures_total", (*engine, "kind"), "Engine calls without a whole answer, by instance."
        )

    def finished(self, route: bytes, model: str, status: int, seconds: float) -> None:
        """Count a request that was sent to engines; one that was refused counts in `requests` only."""
        self.requests[route, model, status] += 1
        self.duration[model].observe(seconds)

    def forget(self, instance: str) -> None:
        """Drop the pairs of one that is gone: else engines that come and go would add up."""
        for family in (self.pairs, self.prefill_seconds, self.decode_seconds):
            for labels in [labels for labels in family if isinstance(labels, tuple) and instance in labels]:
                del family[labels]

    def snapshot(self, instances: Iterable[InstanceFigures]) -> bytes:
        """What this process counted, for the `render` of another."""
        self._take(instances)
        return self._families.snapshot()

    def render(
        self, instances: Iterable[InstanceFigures], snapshots: Iterable[bytes] = (), past: Iterable[bytes] = ()
    ) -> bytes:
        """Prometheus text of this process, of the others' snapshots, and of what dead ones had counted."""
        self._take(instances)
        return self._families.render(snapshots, past)

    def _take(self, instances: Iterable[InstanceFigures]) -> None:
        for family in self._instances.values():
            family.clear()
        self._instance_failures.clear()
        for one in instances:
            for field, family in self._instances.items():
                family[one.role, one.instance] = int(getattr(one, field))
            for kind, count in one.failures.items():
                self._instance_failures[one.role, one.instance, kind] = count


class ModelNames:
    """The models that may be labels: those that engines serve, up to a limit, whatever clients ask for."""

    def __init__(self, limit: int = MAX_MODELS) -> None:
        self._names: set[str] = set()
        self._limit = limit

    def add(self, model: str) -> None:
        """Let a registered model be a label, from now on and also after its engines are gone."""
        if len(self._names) < self._limit:
            self._names.add(model)

    def label(self, model: str) -> str:
        """The model's label."""
        return model if model in self._names else OTHER
