"""Puts pdctl's router and vllm-router in turn in front of the same two vLLM engines, and prints the figures of both.

python -m benchmarks.serving.routers --model SAFETENSORS_FOLDER --vllm-python VENV/bin/python [--rounds 3]
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.serving.systems import Endpoint, free_ports, running, wait_healthy
from benchmarks.serving.workloads import LOADS, Load
from pdctl.bench.report import to_json
from pdctl.bench.runner import run_benchmark

EXAMPLE = Path(__file__).parents[2] / "examples" / "vllm-cpu.yaml"
MODEL = "smollm2"  # as the example has it served
NAMES = ("pdctl", "vllm-router")

Figures = dict[tuple[str, str, str], list[float]]  # (router, load, figure) -> one value a round


def main() -> None:
    """Run the comparison."""
    options = _parse()
    figures: Figures = defaultdict(list)
    with _engines(options.model, options.vllm_python) as status, _vllm_router(options.vllm_python, status) as url:
        endpoints = [Endpoint(status["endpoint"], MODEL, 0), Endpoint(url, MODEL, 0)]
        contenders = list(zip(NAMES, endpoints, strict=True))
        for number in range(options.rounds):
            for turn, (name, endpoint) in enumerate(contenders[:: 1 if number % 2 else -1]):
                for place, load in enumerate(LOADS):
                    seed = len(LOADS) * (len(NAMES) * number + turn) + place
                    asyncio.run(_measure(name, load, endpoint, seed, figures))
    _print_table(figures)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.routers", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a safetensors folder of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--vllm-python", type=Path, required=True, help="interpreter of an environment with vllm-cpu, nixl, vllm-router"
    )
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


@contextmanager
def _engines(model: Path, python: Path) -> Iterator[dict[str, Any]]:
    """The example's deployment, with pdctl's router; its status."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "PDCTL_STATE_DIR": folder,
            "SMOLLM2_FOLDER": str(model.absolute()),
            "VLLM_PYTHON": str(python.absolute()),
            "PORT": "0",
        }
        command = [sys.executable, "-m", "pdctl"]
        subprocess.run([*command, "up", "-d", str(EXAMPLE)], env=environment, check=True)
        try:
            status = subprocess.run([*command, "status", "--json"], env=environment, check=True, capture_output=True)
            yield json.loads(status.stdout)
        finally:
            subprocess.run([*command, "down"], env=environment, check=True)


@contextmanager
def _vllm_router(python: Path, status: dict[str, Any]) -> Iterator[str]:
    """vllm-router beside pdctl's, in front of the same engines; its URL."""
    port, metrics_port = free_ports(2)
    command = [str(python.parent / "vllm-router"), "--vllm-pd-disaggregation", "--kv-connector", "nixl"]
    for process in status["processes"]:
        if process["role"] != "router":
            command += [f"--{process['role']}", f"http://127.0.0.1:{process['port']}"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics_port)]
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(running(command, dict(os.environ), logs / "router.log"))
        wait_healthy(f"http://127.0.0.1:{port}/readiness")
        yield f"http://127.0.0.1:{port}"


async def _measure(name: str, load: Load, endpoint: Endpoint, seed: int, figures: Figures) -> None:
    result = to_json(await run_benchmark(load.workload(seed), endpoint.url, endpoint.model))
    if result["failed"]:
        raise SystemExit(f"{name}, {load.title}: {result['failed']} requests failed: {result['errors_by_kind']}")
    result["input_throughput"] = result["total_input_tokens"] / result["duration"]
    for figure in load.figures:
        figures[name, load.title, figure].append(result[figure])
        print(f"  {name:11} {load.title:14} {figure:20} {result[figure]:9.1f}", flush=True)


def _print_table(figures: Figures) -> None:
    print(f"\n| load | figure | {' | '.join(NAMES)} | pdctl / vllm-router |\n|---|---|---:|---:|---:|")
    for load, figure in dict.fromkeys((load, figure) for _, load, figure in figures):
        ours, theirs = (median(figures[name, load, figure]) for name in NAMES)
        print(f"| {load} | {figure} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
