"""Measures pdctl and vLLM in turn and prints the figures of both, with their ratio.

python -m benchmarks.serving --model SAFETENSORS_FOLDER [--vllm-python VENV/bin/python] [--rounds 2]
"""

import argparse
import asyncio
from collections import defaultdict
from contextlib import AbstractContextManager

from benchmarks.serving.measuring import Figures, measure, parse, print_table
from benchmarks.serving.systems import Endpoint, pdctl_system, vllm_system
from benchmarks.serving.workloads import LOADS


def main() -> None:
    """Run the comparison."""
    options = parse("benchmarks.serving", __doc__, rounds=2, needs_vllm=False)
    figures: Figures = defaultdict(list)
    names = ["pdctl", *(["vllm"] if options.vllm_python else [])]
    for number in range(options.rounds):
        for name in names:
            with _system(name, options) as endpoint:
                print(f"round {number + 1}: {name} ready in {endpoint.ready_s:.1f} s", flush=True)
                figures[name, "start", "ready_s"].append(endpoint.ready_s)
                for place, load in enumerate(LOADS):
                    asyncio.run(measure(name, load, endpoint, seed=len(LOADS) * number + place, figures=figures))
    print_table(figures, names)


def _system(name: str, options: argparse.Namespace) -> AbstractContextManager[Endpoint]:
    if name == "vllm":
        return vllm_system(options.vllm_python, options.model)
    return pdctl_system(options.model)


if __name__ == "__main__":
    main()
