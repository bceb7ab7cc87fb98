import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.bench.arrivals import MIN_BURSTINESS, arrival_times

rates = st.floats(0.01, 10_000)
shapes = st.floats(MIN_BURSTINESS, 100) | st.just(math.inf)


@given(st.integers(1, 300), rates, shapes, st.integers())
def test_times_ascend_and_end_when_the_rate_says(count, rate, burstiness, seed):
    times = arrival_times(count, rate, burstiness=burstiness, seed=seed)
    assert len(times) == count
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] == pytest.approx(count / rate)


@given(st.integers(2, 50), rates, st.integers())
def test_equal_seeds_give_equal_times_and_others_do_not(count, rate, seed):
    assert arrival_times(count, rate, seed=seed) == arrival_times(count, rate, seed=seed)
    assert arrival_times(count, rate, seed=seed) != arrival_times(count, rate, seed=seed + 1)


def test_no_requests_is_no_times():
    assert arrival_times(0, 5.0) == []


def test_infinite_rate_is_all_at_once():
    assert arrival_times(3, math.inf) == [0.0, 0.0, 0.0]


def test_infinite_burstiness_is_a_constant_gap():
    assert arrival_times(4, 2.0, burstiness=math.inf) == [0.5, 1.0, 1.5, 2.0]


def _gap_variation(burstiness):
    times = arrival_times(20_000, 1.0, burstiness=burstiness, seed=7)
    gaps = [later - earlier for earlier, later in pairwise([0.0, *times])]
    mean = sum(gaps) / len(gaps)
    return math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_a_gamma_distribution_of_that_shape(burstiness):
    assert _gap_variation(burstiness) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_poisson_counts_per_second_have_a_variance_equal_to_their_mean():
    times = arrival_times(50_000, 10.0, seed=3)
    counts = [0] * 5_001
    for time in times:
        counts[int(time)] += 1
    variance = sum((count - 10) ** 2 for count in counts[:5_000]) / 5_000
    assert variance == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(("rate", "burstiness"), [(0, 1), (-1, 1), (math.nan, 1), (1, 0), (1, 0.01), (1, math.nan)])
def test_impossible_schedules_are_refused(rate, burstiness):
    with pytest.raises(ValueError, match="must be"):
        arrival_times(1, rate, burstiness=burstiness)
