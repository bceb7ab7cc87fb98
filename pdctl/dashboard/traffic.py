"""What a deployment moves: sums and rates of its processes' counters, right across their restarts."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pdctl.deployment.models import DeploymentStatus, ProcessStatus

WINDOW_S = 5.0  # over which rates are taken


@dataclass
class CounterSum:
    """The sum of one counter of several processes, and how fast it grows.

    A counter that went down belongs to a restarted process: it began at zero again. The first value seen of a process
    is part of the sum but not of the rate, since it came about at an unknown time.
    """

    total: float = 0.0
    _seen: dict[str, float] = field(default_factory=dict)
    _grown: float = 0.0
    _samples: deque[tuple[float, float]] = field(default_factory=deque)  # (time, grown), WINDOW_S of them

    def update(self, values: Iterable[tuple[str, float | None]], now: float) -> None:
        """Take each process's current value; None: not known now."""
        for name, value in values:
            if value is not None:
                self._take(name, value)
        self._samples.append((now, self._grown))
        while self._samples[-1][0] - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()

    @property
    def rate(self) -> float:
        """Growth a second; 0 before there are two samples."""
        if not self._samples:
            return 0.0
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def _take(self, name: str, value: float) -> None:
        last = self._seen.get(name)
        self._seen[name] = value
        if last is None:
            self.total += value
            return
        growth = value if value < last else value - last
        self.total += growth
        self._grown += growth


@dataclass
class Mean:
    """The mean of what several processes measured of late, from their sums and counts."""

    sums: CounterSum = field(default_factory=CounterSum)
    counts: CounterSum = field(default_factory=CounterSum)

    @property
    def value(self) -> float | None:
        """Over the last WINDOW_S; None where nothing was measured."""
        return self.sums.rate / self.counts.rate if self.counts.rate > 0 else None


@dataclass
class Traffic:
    """The figures that the dashboard shows of a whole deployment."""

    requests: CounterSum = field(default_factory=CounterSum)
    generated_tokens: CounterSum = field(default_factory=CounterSum)
    kv_bytes: CounterSum = field(default_factory=CounterSum)
    transferred_tokens: CounterSum = field(default_factory=CounterSum)  # prompt tokens, into decode engines
    local_tokens: CounterSum = field(default_factory=CounterSum)  # prompt tokens that decode engines computed
    ttft: Mean = field(default_factory=Mean)  # seconds, as the router's clients see it where the router tells
    tpot: Mean = field(default_factory=Mean)  # seconds
    waiting: float = 0.0  # requests, at the router and at engines
    _routers_time: bool = False  # a router has told how long first tokens take

    def update(self, status: DeploymentStatus, now: float) -> None:
        """Take the counters of ``status``, which was true at the time ``now``."""
        routers, decodes = _with_role(status, "router"), _with_role(status, "decode")
        generators = decodes + _with_role(status, "mixed")
        self.requests.update(((p.name, p.load.requests) for p in routers), now)
        self.generated_tokens.update(((p.name, p.load.generated_tokens) for p in generators), now)
        self.kv_bytes.update(((p.name, p.load.transferred_bytes) for p in decodes), now)
        self.transferred_tokens.update(((p.name, p.load.transferred_tokens) for p in decodes), now)
        self.local_tokens.update(((p.name, p.load.locally_computed_tokens) for p in decodes), now)
        self._routers_time |= any(p.load.ttft_count is not None for p in routers)
        timers = routers if self._routers_time else generators
        self.ttft.sums.update(((p.name, p.load.ttft_seconds) for p in timers), now)
        self.ttft.counts.update(((p.name, p.load.ttft_count) for p in timers), now)
        self.tpot.sums.update(((p.name, p.load.tpot_seconds) for p in generators), now)
        self.tpot.counts.update(((p.name, p.load.tpot_count) for p in generators), now)
        self.waiting = sum(p.load.waiting or 0 for p in status.processes)


def _with_role(status: DeploymentStatus, role: str) -> list[ProcessStatus]:
    return [process for process in status.processes if process.role == role]
