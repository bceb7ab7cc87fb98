import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.dashboard.units import format_bytes, format_count, format_duration, format_latency, format_rate


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_949, "9.9 kB"),
        (9_960, "10 kB"),
        (999_400, "999 kB"),
        (999_600, "1.0 MB"),
        (1_250_000_000, "1.2 GB"),
        (42e12, "42.0 TB"),
    ],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (9_999, "9999"), (12_345, "12.3k"), (999_949, "999.9k"), (4_000_000, "4.0M")]
)
def test_counts(count, text):
    assert format_count(count) == text


def test_rates():
    assert [format_rate(rate) for rate in (0, 0.44, 99.94, 99.96, 1250.4)] == ["0.0", "0.4", "99.9", "100", "1250"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (59.9, "59s"), (185, "3m05s"), (3600, "1h00m"), (7830, "2h10m"), (4 * 86400 + 3 * 3600, "4d03h")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@given(st.floats(0, 1e14))
def test_bytes_stay_short(count):
    assert len(format_bytes(count)) <= 8


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.00 ms"), (0.00843, "8.43 ms"), (0.0123, "12.3 ms"), (0.123, "123 ms"), (0.9996, "1.00 s"), (75, "75.0 s")],
)
def test_latencies(seconds, text):
    assert format_latency(seconds) == text
