import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.dashboard.traffic import WINDOW_S, CounterSum, Traffic
from pdctl.deployment.models import Load
from tests.dashboard.deployment_samples import deployment, process


def test_rate_is_the_growth_over_the_window():
    counter = CounterSum()
    for second in range(20):
        counter.update([("a", 10.0 * second), ("b", 5.0 * second)], float(second))
    assert counter.rate == pytest.approx(15)
    for second in range(20, 20 + int(WINDOW_S) + 1):
        counter.update([("a", 190.0), ("b", 95.0)], float(second))
    assert counter.rate == 0
    assert counter.total == 285


def test_what_was_counted_before_it_was_looked_at_is_no_rate():
    counter = CounterSum()
    counter.update([("a", 1e6)], 0.0)
    assert (counter.total, counter.rate) == (1e6, 0)
    counter.update([("a", 1e6), ("late", 5e6)], 1.0)
    assert (counter.total, counter.rate) == (6e6, 0)


def test_a_restarted_process_counts_on():
    counter = CounterSum()
    for second, value in enumerate([100.0, 110.0, 4.0, 14.0]):
        counter.update([("a", value)], float(second))
    assert counter.total == 100 + 10 + 4 + 10
    assert counter.rate == pytest.approx(24 / 3)


def test_a_value_that_is_missing_for_a_while_changes_nothing():
    counter = CounterSum()
    for second, value in enumerate([10.0, None, 30.0]):
        counter.update([("a", value)], float(second))
    assert counter.total == 30
    assert counter.rate == pytest.approx(10)


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), min_size=1, max_size=50))
def test_total_never_falls_and_is_what_was_added(steps):
    counter, value, added, totals = CounterSum(), 0.0, 0.0, [0.0]
    counter.update([("a", 0.0)], -1.0)
    for now, (growth, restart) in enumerate(steps):
        value = growth if restart and growth < value else value + growth
        added += growth
        counter.update([("a", value)], float(now))
        totals.append(counter.total)
    assert totals == sorted(totals)
    assert counter.total == pytest.approx(added)


def test_no_samples_is_no_rate():
    assert CounterSum().rate == 0


def _status(scale):
    figures = {"generated_tokens": 10.0 * scale, "transferred_tokens": 7.0 * scale, "transferred_bytes": 1e6 * scale}
    return deployment(
        process("router", load=Load(requests=2.0 * scale)),
        process("prefill-0", load=Load(generated_tokens=99.0 * scale, locally_computed_tokens=50.0 * scale)),
        process("decode-0", load=Load(**figures, locally_computed_tokens=0.0)),
        process("decode-1", load=Load(**figures, locally_computed_tokens=3.0 * scale)),
        process("mixed-0", load=Load(generated_tokens=1.0 * scale, locally_computed_tokens=50.0 * scale)),
    )


def test_each_figure_is_of_the_processes_it_is_about():
    traffic = Traffic()
    traffic.update(_status(1), 0.0)
    traffic.update(_status(3), 2.0)
    assert traffic.requests.rate == pytest.approx(2)
    assert traffic.generated_tokens.rate == pytest.approx(21)  # decode and mixed: a prefill engine's token is decode's
    assert traffic.kv_bytes.total == 6e6
    assert traffic.transferred_tokens.total == 42
    assert traffic.local_tokens.total == 9


def _timed(router, engines):
    """A status after so many seconds of first and next tokens, of 10 requests and 100 tokens a second."""

    def load(times):
        if times is None:
            return Load()
        return Load(ttft_seconds=times[0], ttft_count=times[1], tpot_seconds=times[2], tpot_count=times[3])

    return deployment(
        process("router", load=load(router)),
        process("prefill-0", load=load((9e3, 1.0, 9e3, 1.0))),
        process("decode-0", load=load(engines)),
        process("mixed-0", load=load(engines)),
    )


def test_latencies_are_means_of_what_was_measured_of_late():
    traffic = Traffic()
    traffic.update(_timed((100.0, 1000.0, 0.0, 0.0), (50.0, 10.0, 5.0, 100.0)), 0.0)
    assert (traffic.ttft.value, traffic.tpot.value) == (None, None)
    traffic.update(_timed((102.0, 1010.0, 0.0, 0.0), (59.0, 20.0, 7.0, 200.0)), 1.0)
    assert traffic.ttft.value == pytest.approx(0.2)  # the router's
    assert traffic.tpot.value == pytest.approx(0.02)  # the engines' that generate
    traffic.update(_timed(None, (99.0, 30.0, 9.0, 300.0)), 2.0)  # the router does not answer for once
    assert traffic.ttft.value == pytest.approx(0.2)


def test_first_tokens_are_timed_by_the_engines_where_the_router_does_not():
    traffic = Traffic()
    traffic.update(_timed(None, (50.0, 10.0, 5.0, 100.0)), 0.0)
    traffic.update(_timed(None, (55.0, 20.0, 5.0, 100.0)), 1.0)
    assert traffic.ttft.value == pytest.approx(0.5)
    assert traffic.tpot.value is None


def test_what_waits_is_added_up():
    traffic = Traffic()
    loads = {"router": Load(waiting=2), "prefill-0": Load(waiting=3), "decode-0": Load()}
    traffic.update(deployment(*(process(name, load=load) for name, load in loads.items())), 0.0)
    assert traffic.waiting == 5
