import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from pdctl.dashboard.history import SPAN_S, History, bars, graph_lines, sparkline
from pdctl.dashboard.traffic import Traffic
from pdctl.deployment.models import Load
from tests.dashboard.deployment_samples import deployment, process


def test_bars_are_means_over_equal_times_the_latest_last():
    samples = [(float(second), float(second)) for second in range(300)]
    assert bars(samples, 3) == pytest.approx([49.5, 149.5, 249.5])
    assert bars(samples[:150], 3) == [None, pytest.approx(49.5), pytest.approx(124.5)]


def test_where_nothing_was_measured_there_is_a_gap():
    assert bars([(0.0, 5.0), (100.0, None), (200.0, 7.0)], 3) == [5.0, None, 7.0]
    assert bars([], 2) == [None, None]
    assert bars([(1.0, 1.0)], 0) == []


def test_bars_do_not_change_while_they_move():
    values = [(second / 1.03, float(second % 17)) for second in range(400)]
    before, after = bars(values[:300], 30), bars(values[:320], 30)
    assert after[:28] == before[1:29]


def test_bars_are_never_narrower_than_the_time_between_two_looks():
    samples = [(1.1 * look, 1.0) for look in range(272)]
    shown = bars(samples, 300)
    assert shown == [None] * 180 + [1.0] * 120


def test_sparklines_reach_from_zero_to_the_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7, 8, None, 8]) == "▁▂▃▄▅▆▇██ █"
    assert sparkline([0.0, None, 0.0]) == "▁ ▁"
    assert sparkline([]) == ""


@given(st.integers(1, 250), st.lists(st.none() | st.floats(0, 1e15), max_size=30))
def test_graphs_fill_the_width_and_never_exceed_it(width, rates):
    history = History()
    traffic = Traffic()
    for second, rate in enumerate(rates):
        traffic.waiting = rate or 0
        history.add(traffic, float(second))
    lines = graph_lines(history, width)
    assert 1 <= len(lines) <= 5
    assert all(cell_len(line.plain) <= width for line in lines)


def test_graphs_show_the_latest_value_of_each_figure():
    history, traffic = History(), Traffic()
    for second in range(6):
        load = Load(
            generated_tokens=40.0 * second,
            transferred_bytes=3e9 * second,
            tpot_seconds=0.5 * second,
            tpot_count=20.0 * second,
            waiting=7,
        )
        traffic.update(deployment(process("decode-0", load=load)), float(second))
        history.add(traffic, float(second))
    shown = " ".join(" ".join(line.plain.split()) for line in graph_lines(history, 200))
    assert shown == "tok/s 40.0 █ TTFT - TPOT 25.0 ms █ KV 3.0 GB/s █ waiting 7 █"


def test_memory_is_bounded():
    history = History()
    for second in range(5000):
        history.add(Traffic(), second / 10)
    assert len(history.samples) <= 600
    assert history.samples[-1].time - history.samples[0].time <= SPAN_S
