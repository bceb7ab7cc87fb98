"""Puts pdctl's router and vllm-router in turn in front of the same two vLLM engines, and prints the figures of both.

python -m benchmarks.serving.routers --model SAFETENSORS_FOLDER --vllm-python VENV/bin/python [--rounds 3]
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.serving.measuring import Figures, measure, parse, print_table
from benchmarks.serving.systems import Endpoint, deployed, vllm_router
from benchmarks.serving.workloads import LOADS

EXAMPLE = Path(__file__).parents[2] / "examples" / "vllm-cpu.yaml"
MODEL = "smollm2"  # as the example has it served
NAMES = ["pdctl", "vllm-router"]


def main() -> None:
    """Run the comparison."""
    options = parse("benchmarks.serving.routers", __doc__, rounds=3, needs_vllm=True)
    figures: Figures = defaultdict(list)
    with _both(options.model, options.vllm_python) as urls:
        contenders = [(name, Endpoint(url, MODEL, 0)) for name, url in zip(NAMES, urls, strict=True)]
        for number in range(options.rounds):
            for turn, (name, endpoint) in enumerate(contenders[:: 1 if number % 2 else -1]):
                for place, load in enumerate(LOADS):
                    seed = len(LOADS) * (len(NAMES) * number + turn) + place
                    asyncio.run(measure(name, load, endpoint, seed=seed, figures=figures))
    print_table(figures, NAMES)


@contextmanager
def _both(model: Path, python: Path) -> Iterator[list[str]]:
    """The example's deployment with pdctl's router, and vllm-router beside it, before the same engines; their URLs."""
    environment = {"SMOLLM2_FOLDER": str(model.absolute()), "VLLM_PYTHON": str(python.absolute()), "PORT": "0"}
    with deployed(EXAMPLE, environment) as (status, _), vllm_router(python, _urls(status)) as url:
        yield [status["endpoint"], url]


def _urls(status: dict[str, Any]) -> list[tuple[str, str]]:
    """The engines' roles and URLs."""
    engines = [process for process in status["processes"] if process["role"] != "router"]
    return [(engine["role"], f"http://127.0.0.1:{engine['port']}") for engine in engines]


if __name__ == "__main__":
    main()
