"""What is counted, summed over processes, and read as Prometheus text."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pdctl.planning.routers import OWN_METRICS
from pdctl.router.figures.metrics import InstanceFigures, Metrics, ModelNames
from pdctl.router.figures.prometheus import Families

ROUTE = b"/v1/completions"

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(page: bytes) -> Figures:
    """Every sample of a page, which must have none twice."""
    samples = [
        ((sample.name.removeprefix("pdctl_router_"), tuple(sorted(sample.labels.items()))), sample.value)
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    ]
    assert len(dict(samples)) == len(samples)
    return dict(samples)


def labels(**pairs: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(pairs.items()))


def an_instance(key: str, *, failures: dict[str, int] | None = None, **more: int) -> InstanceFigures:
    fields = dict.fromkeys(InstanceFigures._fields, 0) | {"up": True, "role": "prefill", "instance": key} | more
    return InstanceFigures(**fields | {"failures": failures or {}})


def test_counters_and_gauges_with_and_without_labels():
    metrics = Metrics()
    metrics.requests[ROUTE, "m", 200] += 2
    metrics.fallbacks["prefill_failed"] += 1
    metrics.retries.value += 3
    metrics.queue_depth["m"] = 7
    now = read(metrics.render([]))
    assert now["requests_total", labels(route="/v1/completions", model="m", status="200")] == 2
    assert now["fallbacks_total", labels(reason="prefill_failed")] == 1
    assert now["retries_total", ()] == 3
    assert now["queue_depth", labels(model="m")] == 7
    assert now["resumes_total", ()] == now["broken_streams_total", ()] == 0, "shown before anything happens"


def test_a_value_on_a_bound_is_in_its_bucket():
    families = Families("x_")
    histogram = families.histogram("seconds", (0.1, 0.5), "Time.")
    for value in (0.05, 0.1, 0.3, 9):
        histogram.observe(value)
    now = read(families.render([]))
    assert [now["x_seconds_bucket", labels(le=le)] for le in ("0.1", "0.5", "+Inf")] == [2, 3, 4]
    assert now["x_seconds_count", ()] == 4
    assert now["x_seconds_sum", ()] == pytest.approx(9.45)


def test_times_by_pair_are_a_sum_and_a_count():
    metrics = Metrics()
    metrics.prefill_seconds["p:1", "d:1"].observe(0.25)
    metrics.prefill_seconds["p:1", "d:1"].observe(0.5)
    page = metrics.render([])
    now, pair = read(page), labels(prefill="p:1", decode="d:1")
    assert (now["prefill_seconds_sum", pair], now["prefill_seconds_count", pair]) == (0.75, 2)
    assert b"# TYPE pdctl_router_prefill_seconds summary" in page
    assert ("prefill_seconds_bucket", pair) not in now


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1000)), max_size=8), min_size=1, max_size=4))
def test_any_process_answers_for_all(workers: list[list[tuple[str, float]]]):
    everything, parts = Metrics(), [Metrics() for _ in workers]
    for part, seen in zip(parts, workers, strict=True):
        for model, seconds in seen:
            for metrics in (part, everything):
                metrics.requests[ROUTE, model, 200] += 1
                metrics.ttft[model].observe(seconds)
                metrics.itl.observe(seconds)
                metrics.retries.value += 1
                metrics.requests_in_flight.value += 1
    want = read(everything.render([]))
    for answering in parts:
        others = [part.snapshot([]) for part in parts if part is not answering]
        assert read(answering.render([], others)) == pytest.approx(want)


def test_own_calls_to_instances_are_summed_and_what_all_know_is_not():
    here, there = Metrics(), Metrics()
    snapshot = there.snapshot(
        [an_instance("p:1", breaker_state=2, requests_in_flight=7, requests=9, failures={"connect": 2, "hung": 1})]
    )
    mine = an_instance("p:1", breaker_state=1, requests_in_flight=8, requests=5, failures={"connect": 1})
    now, one = read(here.render([mine], [snapshot])), labels(role="prefill", instance="p:1")
    assert now["instance_up", one] == 1
    assert now["instance_breaker_state", one] == 1
    assert now["instance_requests_in_flight", one] == 8
    assert now["instance_requests_total", one] == 14
    assert now["instance_failures_total", labels(role="prefill", instance="p:1", kind="connect")] == 3
    assert now["instance_failures_total", labels(role="prefill", instance="p:1", kind="hung")] == 1
    assert b"p:1" not in here.render([]), "it is gone"


def test_rendering_twice_counts_once():
    here, there = Metrics(), Metrics()
    there.itl.observe(1)
    there.retries.value += 1
    snapshot = there.snapshot([])
    assert here.render([], [snapshot]) == here.render([], [snapshot])
    assert read(here.render([]))["retries_total", ()] == 0


def test_an_instance_that_is_gone_is_forgotten():
    metrics = Metrics()
    for prefill, decode in (("p:1", "d:1"), ("p:2", "d:1")):
        metrics.pairs[prefill, decode] += 1
        metrics.prefill_seconds[prefill, decode].observe(1)
        metrics.decode_seconds[prefill, decode].observe(1)
    metrics.forget("p:1")
    page = metrics.render([])
    assert b"p:1" not in page
    assert read(page)["pd_requests_total", labels(prefill="p:2", decode="d:1")] == 1


def test_a_request_that_engines_saw_has_a_duration():
    metrics = Metrics()
    metrics.finished(ROUTE, "m", 499, 0.2)
    now = read(metrics.render([]))
    assert now["requests_total", labels(route="/v1/completions", model="m", status="499")] == 1
    assert now["request_duration_seconds_count", labels(model="m")] == 1
    assert now["request_duration_seconds_bucket", labels(model="m", le="0.1")] == 0
    assert now["request_duration_seconds_bucket", labels(model="m", le="0.25")] == 1


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_labels_are_escaped(text: str):
    metrics = Metrics()
    metrics.pairs[text, 'a"b\\c\nd'] += 1
    metrics.ttft[text].observe(1)
    other = Metrics().render([], [metrics.snapshot([])])
    for page in (metrics.render([]), other):
        now = read(page)
        assert now["pd_requests_total", labels(prefill=text, decode='a"b\\c\nd')] == 1
        assert now["ttft_seconds_count", labels(model=text)] == 1


def test_every_family_has_the_prefix_a_help_text_and_a_name_of_its_kind():
    page = Metrics().render([])
    families = list(text_string_to_metric_families(page.decode()))
    assert len({family.name for family in families}) == len(families) == page.count(b"# TYPE ")
    for family in families:
        assert family.name.startswith("pdctl_router_")
        assert family.documentation.endswith(".")
        total = f"# TYPE {family.name}_total counter\n".encode() in page
        assert total == (family.type == "counter"), family.name


def test_the_figures_that_pdctl_itself_reads_are_there():
    metrics = Metrics()
    metrics.ttft["m"].observe(0.1)
    families = text_string_to_metric_families(metrics.render([]).decode())
    there = {name for family in families for name in _names(family)}
    assert set(OWN_METRICS.values()) <= there


def _names(family: Metric) -> set[str]:
    """Of its samples, those that are not there yet included."""
    total = {f"{family.name}_total"} if family.type == "counter" else {family.name}
    return total | {sample.name for sample in family.samples}


def test_only_models_that_are_served_are_labels():
    names = ModelNames(limit=2)
    for model in ("a", "b", "b", "c"):
        names.add(model)
    assert [names.label(model) for model in ("a", "b", "c", "whatever a client asks for", "")] == [
        "a",
        "b",
        "other",
        "other",
        "other",
    ]


@pytest.mark.parametrize("snapshot", [b"", b"\xc1", msgspec.msgpack.encode({"pdctl_router_itl_seconds": 3})])
def test_a_snapshot_that_is_none_is_refused(snapshot: bytes):
    with pytest.raises(msgspec.DecodeError):
        Metrics().render([], [snapshot])


def test_bounds_go_up():
    metrics = Metrics()
    for histogram in (metrics.itl, metrics.queue, metrics.added_latency, metrics.ttft["m"], metrics.duration["m"]):
        assert list(histogram.bounds) == sorted(set(histogram.bounds))
        assert math.isfinite(histogram.bounds[-1])
