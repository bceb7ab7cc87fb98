"""What a benchmark is asked to do, and what it measured."""

import math
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from pdctl.bench.answer import Answer
from pdctl.bench.arrivals import check_arrivals
from pdctl.bench.client import Endpoint
from pdctl.bench.dataset import Dataset

# Above this 99th percentile of send lag, the client's own delay shows in the figures.
SATURATION_LAG_S = 0.010


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What to send, and when.

    With a ``rate``, requests are sent on a fixed schedule whether or not earlier ones are answered (open loop);
    ``concurrency`` then is a cap on those in flight. Without, ``concurrency`` workers send one after the other (closed
    loop). ``requests`` or ``duration_s`` says how much; an open loop sends ``rate * duration_s`` requests, a closed
    loop starts none after ``duration_s``.
    """

    dataset: Dataset
    rate: float | None = None  # requests a second; inf: all at once
    concurrency: int | None = None
    requests: int | None = None
    duration_s: float | None = None
    burstiness: float = 1.0  # see pdctl.bench.arrivals
    seed: int = 0  # of the arrivals
    warmup: int = 1  # requests before the measurement, all at once
    endpoint: Endpoint = "chat"
    ignore_eos: bool = True
    continuous_usage: bool = False  # ask for token counts in every chunk (an extension of the API)
    timeout_s: float = 600.0  # of each request
    keep_texts: bool = False

    def __post_init__(self) -> None:
        if self.rate is None and self.concurrency is None:
            raise ValueError("a workload needs a rate (open loop) or a concurrency (closed loop)")
        if (self.requests is None) == (self.duration_s is None):
            raise ValueError("a workload needs either a number of requests or a duration")
        if self.rate is not None:
            check_arrivals(self.rate, self.burstiness)
        if self.rate is not None and math.isinf(self.rate) and self.requests is None:
            raise ValueError("an infinite rate needs a number of requests")

    @property
    def planned_requests(self) -> int | None:
        """How many requests will be sent; None where only time tells."""
        if self.requests is not None:
            return self.requests
        if self.rate is None or self.duration_s is None:
            return None
        return max(1, round(self.rate * self.duration_s))


@dataclass(frozen=True, slots=True)
class Record:
    """One request, its times in seconds since the start of the benchmark."""

    intended: float  # when it was due
    queued: float  # how long it waited for a place under the concurrency cap
    sent: float  # when the client began to send it
    done: float
    answer: Answer  # its times too

    @property
    def completed(self) -> bool:
        """Whether the answer came whole."""
        return self.answer.error_kind is None

    @property
    def lag(self) -> float:
        """How late the client itself was."""
        return self.sent - self.intended - self.queued

    @property
    def wait(self) -> float:
        """How long after its due time it was sent, for whatever reason."""
        return self.sent - self.intended

    @property
    def output_tokens(self) -> int:
        """Output tokens by the server's usage, else the number of chunks."""
        return self.answer.chunks if self.answer.output_tokens is None else self.answer.output_tokens

    @property
    def ttft(self) -> float:
        """Time from sending to the first token."""
        return (self.answer.first or 0.0) - self.sent

    @property
    def e2el(self) -> float:
        """Time from sending to the end of the output."""
        return (self.answer.last or 0.0) - self.sent

    @property
    def tpot(self) -> float | None:
        """Mean time of an output token after the first; None where there is none."""
        return (self.e2el - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None


@dataclass(frozen=True)
class Result:
    """A whole benchmark; summed up by `pdctl.bench.report`."""

    workload: Workload
    url: str
    model: str
    started_at: datetime
    duration: float  # seconds from the start until the last answer ended
    records: list[Record]
    cancelled: int = 0  # requests under way when it was interrupted: neither completed nor failed
    interrupted: bool = False

    @property
    def completed(self) -> list[Record]:
        """The requests that were answered whole."""
        return [record for record in self.records if record.completed]

    @property
    def failed(self) -> list[Record]:
        """The requests that were not."""
        return [record for record in self.records if not record.completed]

    @property
    def error_rate(self) -> float:
        """The share of failed requests; 1 where nothing was answered at all."""
        return len(self.failed) / len(self.records) if self.records else 1.0


@dataclass
class Tally:
    """Running figures of a benchmark, for live progress."""

    sent: int = 0
    done: int = 0
    failed: int = 0
    output_tokens: int = 0
    ttfts: deque[float] = field(default_factory=lambda: deque(maxlen=500))  # of the latest requests, seconds

    def count_tokens(self, count: int) -> None:
        """Add output tokens that came."""
        self.output_tokens += count

    def count_done(self, record: Record) -> None:
        """Add a request that ended."""
        self.done += 1
        if record.completed:
            self.ttfts.append(record.ttft)
        else:
            self.failed += 1
