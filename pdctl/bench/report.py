"""A benchmark's figures as JSON (the keys of `vllm bench serve`, and more) and as a table."""

import math
from collections import Counter
from dataclasses import asdict
from itertools import accumulate
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pdctl import __version__
from pdctl.bench.records import SATURATION_LAG_S, Record, Result
from pdctl.bench.statistics import Summary, busiest_second, peak_overlap, summarise

_BACKENDS = {"chat": "openai-chat", "completions": "openai"}
_TITLES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2el": "E2E",
    "ttft_from_intended": "TTFT from due time",
    "e2el_from_intended": "E2E from due time",
    "send_lag": "Send lag",
}


def to_json(result: Result, *, detailed: bool = False) -> dict[str, Any]:
    """Return the result as plain data; ``detailed`` adds the lists with one entry a request, in seconds."""
    return {
        **_settings(result),
        **_totals(result),
        **_flat(latencies_ms(result)),
        **_client_state(result),
        **(_details(result) if detailed else {}),
    }


def latencies_ms(result: Result) -> dict[str, Summary]:
    """Return the summary of each latency, in milliseconds, of the completed requests."""
    done = result.completed
    seconds = {
        "ttft": [record.ttft for record in done],
        "tpot": [record.tpot for record in done if record.tpot is not None],
        "itl": [gap for record in done for gap in record.answer.gaps],
        "e2el": [record.e2el for record in done],
        "ttft_from_intended": [record.ttft + record.wait for record in done],
        "e2el_from_intended": [record.e2el + record.wait for record in done],
        "send_lag": [record.lag for record in result.records],
    }
    if result.workload.rate is not None and result.workload.concurrency is not None:
        seconds["client_queue_time"] = [record.queued for record in done]
        seconds["e2el_including_client_queue"] = [record.e2el + record.queued for record in done]
    return {name: summarise(1000 * value for value in values) for name, values in seconds.items()}


def warnings(result: Result) -> list[str]:
    """Return what makes the figures mean less than they seem to."""
    found = []
    if _is_saturated(result):
        lag = latencies_ms(result)["send_lag"].p99
        found.append(
            f"the client was saturated: it sent requests up to {lag:.1f} ms late (p99); "
            "latencies from the due time are the honest ones, and a lower rate or a faster client machine is needed"
        )
    done = result.completed
    if any(record.answer.output_tokens is None for record in done):
        found.append("the server sent no usage: tokens are counted as chunks, and prompt tokens not at all")
    elif _itl_kind(result) == "chunk_gaps":
        tokens, chunks = sum(record.output_tokens for record in done), sum(record.answer.chunks for record in done)
        if tokens > 1.1 * chunks:
            found.append(f"a chunk holds {tokens / chunks:.1f} tokens on average: ITL is the time between chunks")
    if result.interrupted:
        found.append(f"interrupted: {result.cancelled} requests that were under way are left out")
    return found


def render_report(result: Result) -> RenderableType:
    """Return the result for a terminal."""
    data = to_json(result)
    return Group(_figures_table(result, data), Text(), _latency_table(result))


def _settings(result: Result) -> dict[str, Any]:
    work = result.workload
    backend = _BACKENDS[work.endpoint]
    return {
        "date": result.started_at.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": None,
        "model_id": result.model,
        "tokenizer_id": None,
        "num_prompts": len(result.records) + result.cancelled,
        "request_rate": "inf" if work.rate is None or math.isinf(work.rate) else work.rate,
        "burstiness": "inf" if math.isinf(work.burstiness) else work.burstiness,
        "max_concurrency": work.concurrency,
        "url": result.url,
        "pdctl_version": __version__,
        "loop": "closed" if work.rate is None else "open",
        "seed": work.seed,
        "num_warmups": work.warmup,
        "ignore_eos": work.ignore_eos,
    }


def _totals(result: Result) -> dict[str, Any]:
    done, duration = result.completed, result.duration
    inputs = sum(record.answer.input_tokens or 0 for record in done)
    outputs = sum(record.output_tokens for record in done)
    return {
        "duration": duration,
        "completed": len(done),
        "failed": len(result.failed),
        "cancelled": result.cancelled,
        "interrupted": result.interrupted,
        "error_rate": result.error_rate,
        "errors_by_kind": dict(Counter(record.answer.error_kind for record in result.failed)),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": _per_second(len(done), duration),
        "request_goodput": None,
        "output_throughput": _per_second(outputs, duration),
        "total_token_throughput": _per_second(inputs + outputs, duration),
        "max_output_tokens_per_s": float(busiest_second(time for record in done for time in _token_times(record))),
        "max_concurrent_requests": peak_overlap((record.sent, record.done) for record in result.records),
        "rtfx": 0.0,
    }


def _flat(summaries: dict[str, Summary]) -> dict[str, float]:
    return {f"{key}_{name}_ms": value for name, summary in summaries.items() for key, value in asdict(summary).items()}


def _client_state(result: Result) -> dict[str, Any]:
    return {"client_saturated": _is_saturated(result), "itl_kind": _itl_kind(result), "warnings": warnings(result)}


def _details(result: Result) -> dict[str, Any]:
    records = result.records
    return {
        "input_lens": [record.answer.input_tokens or 0 for record in records],
        "output_lens": [record.output_tokens if record.completed else 0 for record in records],
        "ttfts": [record.ttft if record.completed else 0.0 for record in records],
        "itls": [record.answer.gaps for record in records],
        "latencies": [record.e2el if record.completed else 0.0 for record in records],
        "start_times": [record.sent for record in records],
        "queue_times": [record.queued for record in records],
        "generated_texts": ["".join(record.answer.texts) for record in records],
        "errors": [_error_text(record) for record in records],
        "intended_times": [record.intended for record in records],
        "send_lags": [record.lag for record in records],
    }


def _is_saturated(result: Result) -> bool:
    return summarise(record.lag for record in result.records).p99 > SATURATION_LAG_S


def _itl_kind(result: Result) -> str:
    done = result.completed
    return "usage_delta" if done and all(record.answer.usage_per_chunk for record in done) else "chunk_gaps"


def _token_times(record: Record) -> list[float]:
    return list(accumulate(record.answer.gaps, initial=record.answer.first or 0.0))


def _per_second(count: int, duration: float) -> float:
    return count / duration if duration > 0 else 0.0


def _error_text(record: Record) -> str:
    return "" if record.completed else f"{record.answer.error_kind}: {record.answer.error}"


def _figures_table(result: Result, data: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in _figures(result, data):
        table.add_row(name, Text(value))
    return table


def _figures(result: Result, data: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("Server", f"{result.url}  {result.model}"),
        ("Load", _load(result)),
        ("Requests", f"{data['completed']} completed, {data['failed']} failed in {result.duration:.2f} s"),
        ("Tokens", f"{data['total_input_tokens']} prompt, {data['total_output_tokens']} output"),
        ("Requests/s", f"{data['request_throughput']:.2f}"),
        ("Output tokens/s", f"{data['output_throughput']:.2f} (busiest second {data['max_output_tokens_per_s']:.0f})"),
        ("All tokens/s", f"{data['total_token_throughput']:.2f}"),
        ("Most in flight", str(data["max_concurrent_requests"])),
    ]
    samples = {record.answer.error_kind: record.answer.error for record in result.failed}
    rows += [(f"Failed ({count})", f"{kind}: {samples[kind]}") for kind, count in data["errors_by_kind"].items()]
    return rows


def _load(result: Result) -> str:
    work = result.workload
    if work.rate is None:
        return f"closed loop, {work.concurrency} at a time"
    shape = "Poisson" if work.burstiness == 1 else f"burstiness {work.burstiness:g}"
    cap = f", at most {work.concurrency} in flight" if work.concurrency else ""
    return f"open loop, {work.rate:g} requests/s ({shape}){cap}"


def _latency_table(result: Result) -> Table:
    table = Table("ms", box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("mean", "median", "p90", "p99"):
        table.add_column(name, justify="right")
    for key, summary in latencies_ms(result).items():
        if key in _TITLES:
            cells = (summary.mean, summary.median, summary.p90, summary.p99)
            table.add_row(_TITLES[key], *(f"{cell:.2f}" for cell in cells))
    return table
