"""The router's figures, and their Prometheus text."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

from pdctl.router.instance import Instance

PREFIX = "pdctl_router_"
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counted since the start."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[bytes, int]] = Counter()  # by route and status; 499: the client left
        self.pairs: Counter[tuple[str, str]] = Counter()  # requests sent to a prefill and a decode, by instance
        self.leg_failures: Counter[tuple[str, str]] = Counter()  # by role and kind
        self.retries = 0  # requests sent to another pair
        self.broken_streams = 0  # answers that ended in the middle
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def refused(self, route: bytes, status: int) -> None:
        """Count a request that no engine saw."""
        self.requests[route, status] += 1

    def finished(self, route: bytes, status: int, seconds: float) -> None:
        """Count a request that was sent to engines."""
        self.requests[route, status] += 1
        self._buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds += seconds

    def render(self, instances: Iterable[Instance], gauges: Mapping[str, float]) -> bytes:
        """Everything as Prometheus text. `gauges` are further values by name."""
        page = _Page()
        page.family("requests_total", "counter", "Requests answered, by route and status (499: the client left).")
        for (route, status), count in self.requests.items():
            page.sample("requests_total", (("route", route.decode()), ("status", str(status))), count)
        page.family("pd_requests_total", "counter", "Requests sent to a prefill and a decode instance.")
        for (prefill, decode), count in self.pairs.items():
            page.sample("pd_requests_total", (("prefill", prefill), ("decode", decode)), count)
        page.family("leg_failures_total", "counter", "Engine calls without a whole answer, by role and kind.")
        for (role, kind), count in self.leg_failures.items():
            page.sample("leg_failures_total", (("role", role), ("kind", kind)), count)
        page.single("retries_total", "counter", "Requests sent to another instance.", self.retries)
        page.single("broken_streams_total", "counter", "Answers that ended in the middle.", self.broken_streams)
        for name, value in gauges.items():
            page.single(name, "gauge", name.replace("_", " ").capitalize() + ".", value)
        self._render_durations(page)
        _render_instances(page, list(instances))
        return page.text()

    def _render_durations(self, page: "_Page") -> None:
        name, total = "request_duration_seconds", 0
        page.family(name, "histogram", "From a whole request to the end of its answer, if engines were asked.")
        for bound, count in zip((*BUCKETS, None), self._buckets, strict=True):
            total += count
            page.sample(f"{name}_bucket", (("le", "+Inf" if bound is None else f"{bound:g}"),), total)
        page.sample(f"{name}_sum", (), self._seconds)
        page.sample(f"{name}_count", (), total)


class _Page:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str) -> None:
        self._lines.append(f"# HELP {PREFIX}{name} {text}\n# TYPE {PREFIX}{name} {kind}\n")

    def sample(self, name: str, labels: Labels, value: float) -> None:
        inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
        self._lines.append(f"{PREFIX}{name}{{{inner}}} {value}\n" if inner else f"{PREFIX}{name} {value}\n")

    def single(self, name: str, kind: str, text: str, value: float) -> None:
        self.family(name, kind, text)
        self.sample(name, (), value)

    def text(self) -> bytes:
        return "".join(self._lines).encode()


def _render_instances(page: _Page, instances: list[Instance]) -> None:
    for name, kind, text, value in (
        ("instance_up", "gauge", "Whether an instance answers.", lambda i: int(i.live)),
        ("instance_requests_in_flight", "gauge", "Requests at an instance.", lambda i: i.load.requests),
        ("instance_tokens_in_flight", "gauge", "Estimated prompt tokens at an instance.", lambda i: i.load.tokens),
        ("instance_requests_total", "counter", "Requests assigned to an instance.", lambda i: i.load.assigned),
        ("instance_connections", "gauge", "Open connections to an instance.", lambda i: len(i.pool.open)),
        ("instance_idle_connections", "gauge", "Kept-alive connections to an instance.", lambda i: i.pool.idle),
        ("instance_stale_retries_total", "counter", "Stale connections replaced.", lambda i: i.pool.stale_retries),
    ):
        page.family(name, kind, text)
        for instance in instances:
            page.sample(name, (("role", instance.registration.role), ("instance", instance.key)), value(instance))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
