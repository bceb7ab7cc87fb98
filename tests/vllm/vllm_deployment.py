"""examples/vllm-cpu.yaml, started and stopped, and what is read of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.e2e_harness import Cli, clean_cli

EXAMPLE = Path(__file__).parents[2] / "examples" / "vllm-cpu.yaml"
QUESTION = "What is the capital of Italy?"
LIMIT_S = 60.0
START_S = 600.0  # for engines on a machine that others use, too


@contextmanager
def vllm(folder: Path, router: str = "pdctl") -> Iterator[Cli]:
    """The example with a router of a kind; in the end nothing of it is left."""
    with pytest.MonkeyPatch.context() as environment, clean_cli(folder) as cli:
        environment.setenv("PORT", "0")
        environment.setenv("ROUTER", router)
        started = cli("up", "-d", EXAMPLE, timeout=START_S)
        assert started.returncode == 0, started.stdout + started.stderr
        yield cli
        assert cli("down").returncode == 0
        cli.check_gone()


def process_of(cli: Cli, name: str) -> dict[str, object]:
    return {process["name"]: process for process in cli.status()["processes"]}[name]


def load_of(cli: Cli, name: str) -> dict[str, float]:
    return process_of(cli, name)["load"]


def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # an engine's figures are published by nobody
