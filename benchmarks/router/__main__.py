"""Measures our router, sglang-router and vllm-router in turn, with the same mock engines and client, and prints ratios.

python -m benchmarks.router --peers-bin FOLDER [--rounds 3] [--seconds 5]
python -m benchmarks.router --only pdctl-builtin --load stream64 --seconds 3 --rounds 1
"""

import argparse
import asyncio
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import uvloop

from benchmarks.router.loads import LOADS, Load
from benchmarks.router.machine import OtherProcesses, allow_many_connections
from benchmarks.router.report import Figures, print_report
from benchmarks.router.routers import CONTENDERS, Contender, Endpoint, Options, running


def main() -> None:
    """Run the comparison."""
    options = _parse()
    contenders = [contender for contender in CONTENDERS if not options.only or contender.name in options.only]
    loads = [load for load in LOADS if not options.load or load.name in options.load]
    allow_many_connections()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended first
    figures: Figures = defaultdict(list)
    others: list[float] = []  # cores
    for number in range(options.rounds):
        print(f"round {number + 1}", flush=True)
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            others += _measure_all(contender, loads, options, figures)
    print_report(
        figures,
        rounds=options.rounds,
        seconds=options.seconds,
        workers=options.workers,
        peers_bin=options.peers_bin,
        others=sum(others) / max(1, len(others)),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router", description=__doc__)
    parser.add_argument("--peers-bin", type=Path, help="folder with sglang-router and vllm-router")
    parser.add_argument("--workers", type=int, default=2, help="processes of our router")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--only", action="append", choices=names, help="not all; may be repeated")
    loads = [load.name for load in LOADS]
    parser.add_argument("--load", action="append", choices=loads, help="not all; may be repeated")
    return parser.parse_args()


def _measure_all(
    contender: Contender, loads: list[Load], options: argparse.Namespace, figures: Figures
) -> Iterator[float]:
    """Measure every load; yields how many cores other processes used meanwhile."""
    loads = [load for load in loads if not contender.loads or load.name in contender.loads]
    if not loads:
        return
    with running(contender, Options(options.peers_bin, options.workers)) as endpoint:
        for load in loads:
            begin, others = time.perf_counter(), OtherProcesses()
            measured = _measure(load, contender, endpoint, options.seconds)
            busy = others.used_s() / (time.perf_counter() - begin)
            for figure, value in measured.items():
                figures[contender.name, load.name, figure].append(value)
            shown = "; ".join(f"{figure} {value:.2f}" for figure, value in measured.items())
            print(f"  {contender.name}, {load.name}: {shown} (others: {busy:.2f} cores)", flush=True)
            yield busy


def _measure(load: Load, contender: Contender, endpoint: Endpoint, seconds: float) -> dict[str, float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load.measure(endpoint, contender.live_path, seconds))


if __name__ == "__main__":
    main()
