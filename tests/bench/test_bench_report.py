import io
import json
import math
from datetime import datetime

import pytest
from rich.console import Console

from pdctl.bench.answer import Answer
from pdctl.bench.dataset import SyntheticDataset
from pdctl.bench.records import Record, Result, Tally, Workload
from pdctl.bench.report import render_report, to_json, warnings

VLLM_KEYS = [
    "date",
    "endpoint_type",
    "backend",
    "label",
    "model_id",
    "tokenizer_id",
    "num_prompts",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    "rtfx",
]
VLLM_METRICS = [
    f"{figure}_{metric}_ms" for metric in ("ttft", "tpot", "itl", "e2el") for figure in ("mean", "median", "std", "p99")
]
VLLM_ARRAYS = [
    "input_lens",
    "output_lens",
    "ttfts",
    "itls",
    "latencies",
    "start_times",
    "queue_times",
    "generated_texts",
    "errors",
]


def answered(
    intended, *, sent=None, queued=0.0, first=0.1, gaps=(0.02, 0.02), output_tokens=3, chunks=3, per_chunk=False
):
    """A completed request, `first` seconds to its first token."""
    sent = intended + queued if sent is None else sent
    answer = Answer(first=sent + first, last=sent + first + sum(gaps), gaps=list(gaps), chunks=chunks, finished=True)
    answer.input_tokens, answer.output_tokens = 10, output_tokens
    answer.usage_per_chunk, answer.texts = per_chunk, ["a", "b"]
    return Record(intended, queued, sent, answer.last, answer)


def failed(intended, kind="http 503"):
    answer = Answer()
    answer.fail(kind, "no decode engine")
    return Record(intended, 0.0, intended, intended + 0.01, answer)


def result(*records, rate=10.0, duration=2.0, **settings):
    work = Workload(dataset=SyntheticDataset(10, 3, 0), rate=rate, requests=max(1, len(records)), **settings)
    return Result(work, "http://127.0.0.1:8000", "tiny", datetime(2026, 1, 2, 3, 4, 5), duration, list(records))


def shown(value):
    console = Console(file=io.StringIO(), width=120)
    console.print(render_report(value))
    return console.file.getvalue()


def test_json_has_every_key_of_vllm_bench_serve():
    data = to_json(result(answered(0.0)), detailed=True)
    assert set(VLLM_KEYS + VLLM_METRICS + VLLM_ARRAYS) <= set(data)
    json.dumps(data, allow_nan=False)


def test_lists_are_left_out_unless_asked_for():
    assert not set(VLLM_ARRAYS) & set(to_json(result(answered(0.0))))


def test_figures():
    data = to_json(result(answered(0.0), answered(0.5, first=0.3), failed(1.0), failed(1.1, "timeout")))
    assert data["date"] == "20260102-030405"
    assert (data["completed"], data["failed"], data["num_prompts"]) == (2, 2, 4)
    assert data["errors_by_kind"] == {"http 503": 1, "timeout": 1}
    assert data["error_rate"] == 0.5
    assert (data["total_input_tokens"], data["total_output_tokens"]) == (20, 6)
    assert data["request_throughput"] == 1.0
    assert data["output_throughput"] == 3.0
    assert data["total_token_throughput"] == 13.0
    assert data["mean_ttft_ms"] == pytest.approx(200)
    assert data["p90_ttft_ms"] == pytest.approx(280)
    assert data["mean_itl_ms"] == pytest.approx(20)
    assert data["mean_tpot_ms"] == pytest.approx(20)
    assert data["mean_e2el_ms"] == pytest.approx(240)
    assert data["max_output_tokens_per_s"] == 6.0


def test_a_one_token_answer_has_no_tpot():
    data = to_json(result(answered(0.0), answered(1.0, gaps=(), output_tokens=1, chunks=1)))
    assert data["mean_tpot_ms"] == pytest.approx(20)


def test_latency_from_the_due_time_includes_what_the_client_was_late():
    data = to_json(result(*[answered(float(index), sent=index + 0.05) for index in range(4)]))
    assert data["mean_ttft_ms"] == pytest.approx(100)
    assert data["mean_ttft_from_intended_ms"] == pytest.approx(150)
    assert data["mean_e2el_from_intended_ms"] == pytest.approx(190)
    assert data["p50_send_lag_ms"] == pytest.approx(50)
    assert data["client_saturated"] is True
    assert "50.0 ms late" in data["warnings"][0]


def test_waiting_for_a_place_is_not_the_clients_lag():
    data = to_json(result(answered(0.0), answered(0.0, queued=0.5), concurrency=1))
    assert data["client_saturated"] is False
    assert data["p99_send_lag_ms"] == pytest.approx(0)
    assert data["mean_client_queue_time_ms"] == pytest.approx(250)
    assert data["mean_e2el_including_client_queue_ms"] == pytest.approx(390)
    assert "mean_client_queue_time_ms" not in to_json(result(answered(0.0)))


def test_kind_of_itl_is_named_and_packed_chunks_warned_of():
    assert to_json(result(answered(0.0, per_chunk=True)))["itl_kind"] == "usage_delta"
    packed = result(answered(0.0, output_tokens=9))
    assert to_json(packed)["itl_kind"] == "chunk_gaps"
    assert warnings(packed) == ["a chunk holds 3.0 tokens on average: ITL is the time between chunks"]
    assert warnings(result(answered(0.0))) == []


def test_without_usage_chunks_are_counted_and_it_is_said():
    unknown = result(answered(0.0, output_tokens=None))
    assert to_json(unknown)["total_output_tokens"] == 3
    assert "no usage" in warnings(unknown)[0]


def test_infinite_settings_are_valid_json():
    data = to_json(result(answered(0.0), rate=math.inf, burstiness=math.inf))
    assert (data["request_rate"], data["burstiness"]) == ("inf", "inf")
    json.dumps(data, allow_nan=False)


def test_nothing_measured_is_all_zero_and_all_failed():
    empty = result(duration=0.0)
    assert empty.error_rate == 1.0
    assert to_json(empty, detailed=True)["output_throughput"] == 0.0
    assert "0 completed, 0 failed" in shown(empty)


def test_detailed_lists_have_an_entry_a_request():
    data = to_json(result(answered(0.0), failed(1.0)), detailed=True)
    assert data["ttfts"] == [pytest.approx(0.1), 0.0]
    assert data["itls"] == [[0.02, 0.02], []]
    assert data["generated_texts"] == ["ab", ""]
    assert data["errors"] == ["", "http 503: no decode engine"]
    assert data["intended_times"] == [0.0, 1.0]


def test_report_shows_figures_and_errors():
    text = shown(result(answered(0.0), answered(0.5, first=0.3), failed(1.0), failed(1.1)))
    assert "open loop, 10 requests/s (Poisson)" in text
    assert "2 completed, 2 failed in 2.00 s" in text
    assert "http 503: no decode engine" in text
    assert "Failed (2)" in text
    ttft = next(line for line in text.splitlines() if line.startswith("TTFT "))
    assert ttft.split() == ["TTFT", "200.00", "200.00", "280.00", "298.00"]


def test_report_does_not_read_markup_in_errors():
    assert "[bold]x[/]" in shown(result(failed(0.0, kind="[bold]x[/]")))


def test_tally_counts():
    tally = Tally()
    tally.count_done(answered(0.0))
    tally.count_done(failed(0.0))
    tally.count_tokens(3)
    assert (tally.done, tally.failed, tally.output_tokens, list(tally.ttfts)) == (2, 1, 3, [pytest.approx(0.1)])
