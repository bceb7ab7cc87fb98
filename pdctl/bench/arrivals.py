"""When each request of an open-loop benchmark is due."""

import math
from itertools import accumulate
from random import Random

MIN_BURSTINESS = 0.05  # below it gamma-distributed gaps underflow to zero


def arrival_times(count: int, rate: float, *, burstiness: float = 1.0, seed: int = 0) -> list[float]:
    """Return the due times of ``count`` requests in seconds from the start, ascending.

    Gaps are gamma-distributed with shape ``burstiness``: 1 is a Poisson process, less comes in bursts, more is evener,
    ``inf`` is a constant gap. The times are scaled so that the last request is due at exactly ``count / rate``: the
    rate is the one asked for in every run. An infinite ``rate`` makes all requests due at once. Equal arguments give
    equal times.
    """
    check_arrivals(rate, burstiness)
    if math.isinf(rate):
        return [0.0] * count
    if math.isinf(burstiness):
        return [(index + 1) / rate for index in range(count)]
    random = Random(seed)
    times = list(accumulate(random.gammavariate(burstiness, 1.0) for _ in range(count)))
    return [count / rate * (time / times[-1]) for time in times]


def check_arrivals(rate: float, burstiness: float) -> None:
    """Raise `ValueError` where no schedule can be made."""
    if not rate > 0:
        raise ValueError(f"the request rate must be positive, not {rate}")
    if not burstiness >= MIN_BURSTINESS:
        raise ValueError(f"burstiness must be at least {MIN_BURSTINESS}, not {burstiness}")
