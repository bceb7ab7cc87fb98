import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.bench.statistics import Summary, busiest_second, peak_overlap, percentile, summarise

values = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=200)


@given(values, st.floats(0, 100))
def test_percentile_is_numpys_linear_one(numbers, percent):
    assert percentile(sorted(numbers), percent) == pytest.approx(numpy.percentile(numbers, percent), rel=1e-9, abs=1e-3)


@given(values)
def test_summary_is_numpys(numbers):
    summary = summarise(numbers)
    assert summary.mean == pytest.approx(numpy.mean(numbers), rel=1e-9, abs=1e-3)
    assert summary.std == pytest.approx(numpy.std(numbers), rel=1e-6, abs=1e-3)
    assert summary.median == summary.p50 == pytest.approx(numpy.median(numbers), rel=1e-9, abs=1e-3)
    assert min(numbers) <= summary.p50 <= summary.p90 <= summary.p95 <= summary.p99 <= max(numbers)


def test_summary_of_nothing_is_zero():
    assert summarise([]) == Summary()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=40))
def test_peak_overlap_is_the_most_spans_over_any_instant(spans):
    spans = [(start, start + length) for start, length in spans]
    most = max((sum(start <= time < end for start, end in spans) for time in range(71)), default=0)
    assert peak_overlap(spans) == most


def test_a_span_that_starts_as_another_ends_does_not_overlap_it():
    assert peak_overlap([(0.0, 1.0), (1.0, 2.0)]) == 1


def test_busiest_second():
    assert busiest_second([0.1, 0.9, 1.0, 1.5, 1.99, 5.0]) == 3
    assert busiest_second([]) == 0
