"""Means, percentiles and concurrency of what a benchmark measured."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """What a list of measurements comes to, in their own unit; all zero for an empty list."""

    mean: float = 0.0
    median: float = 0.0
    std: float = 0.0  # of the population
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


def summarise(values: Iterable[float]) -> Summary:
    """Return the summary of ``values``."""
    ordered = sorted(values)
    if not ordered:
        return Summary()
    mean = statistics.fmean(ordered)
    p50, p90, p95, p99 = (percentile(ordered, percent) for percent in (50, 90, 95, 99))
    return Summary(mean, p50, _deviation(ordered, mean), p50, p90, p95, p99)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile of an ascending, non-empty list, interpolated linearly (numpy's default)."""
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    # Not a weighted sum: this form is exact where both neighbours are equal.
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def peak_overlap(spans: Iterable[tuple[float, float]]) -> int:
    """Return how many of the half-open spans [start, end) overlap at most."""
    edges = sorted((time, step) for start, end in spans for time, step in ((start, 1), (end, -1)))
    current = peak = 0
    for _, step in edges:
        current += step
        peak = max(peak, current)
    return peak


def busiest_second(times: Iterable[float]) -> int:
    """Return the most events that fall into one whole second."""
    return max(Counter(math.floor(time) for time in times).values(), default=0)


def _deviation(values: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
