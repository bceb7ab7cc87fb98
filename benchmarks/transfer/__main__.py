"""Measures our tcp and ipc transports, memcpy, Mooncake and NIXL in turn, over loopback, and prints GB/s and ratios.

python -m benchmarks.transfer --peers-python VENV/bin/python [--rounds 5] [--pushes 10]

VENV is a virtual environment: pip install numpy mooncake-transfer-engine-non-cuda==0.3.13.post1 nixl-cu12==1.5.1
Mooncake needs libraries of the system: on Debian, apt install libibverbs1 libnuma1 libcurl4.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.router.machine import OtherProcesses, describe
from benchmarks.transfer.contenders import CONTENDERS, Contender, running
from benchmarks.transfer.side import POOL_BYTES, PUSH_BYTES

BLOCK_BYTES = (2 << 20, 64 << 10)

Figures = dict[tuple[str, int], list[float]]  # contender, size of a block -> GB/s of each push


def main() -> None:
    """Run the comparison."""
    options = _parse()
    contenders = [one for one in CONTENDERS if one.name in (options.only or [one.name])]
    if options.peers_python is None:
        contenders = [contender for contender in contenders if not contender.peer]
    figures: Figures = defaultdict(list)
    others: list[float] = []  # cores
    for number in range(options.rounds):
        in_turn = contenders if number % 2 == 0 else reversed(contenders)
        others += [_measure(contender, number, options, figures) for contender in in_turn]
    _report(contenders, figures, options, statistics.mean(others))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers-python", type=Path, help="interpreter of an environment with both peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pushes", type=int, default=10, help="of each size in a round")
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--only", action="append", choices=names, help="not all; may be repeated")
    return parser.parse_args()


def _measure(contender: Contender, number: int, options: argparse.Namespace, figures: Figures) -> float:
    """Measure every size of a block; returns how many cores other processes used meanwhile."""
    with running(contender, options.peers_python) as duet:
        began, others = time.perf_counter(), OtherProcesses()
        for block_bytes in BLOCK_BYTES:
            seeds = [number * 1000 + place for place in range(1 + options.pushes)]
            seconds = [duet.push(seed, block_bytes) for seed in seeds][1:]  # the first one prepares
            duet.check(seeds[-1], block_bytes)
            rates = [PUSH_BYTES / each / 1e9 for each in seconds]
            figures[contender.name, block_bytes] += rates
            rate = statistics.median(rates)
            print(f"round {number + 1}: {contender.name:9} {_size(block_bytes):7} {rate:6.2f} GB/s", flush=True)
        return others.used_s() / (time.perf_counter() - began)


def _report(
    contenders: Sequence[Contender], figures: Figures, options: argparse.Namespace, others_cores: float
) -> None:
    print(f"\n{describe()}; other processes used {others_cores:.2f} cores")
    print(
        f"{PUSH_BYTES >> 20} MiB a push, random blocks to random blocks of pools of {POOL_BYTES >> 20} MiB;"
        f" medians of {options.rounds} rounds of {options.pushes} pushes, in turn\n"
    )
    names = [contender.name for contender in contenders]
    print(f"| GB/s | {' | '.join(names)} | ipc / memcpy | tcp / faster peer |\n|---|{'---:|' * (len(names) + 2)}")
    for block_bytes in BLOCK_BYTES:
        rates = {name: statistics.median(figures[name, block_bytes]) for name in names}
        peers = [rates[contender.name] for contender in contenders if contender.peer]
        shown = " | ".join(f"{rates[name]:.2f}" for name in names)
        ratios = _ratio(rates.get("ipc"), rates.get("memcpy")), _ratio(rates.get("tcp"), max(peers, default=None))
        print(f"| blocks of {_size(block_bytes)} | {shown} | {' | '.join(ratios)} |")


def _ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base is not None else ""


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


if __name__ == "__main__":
    main()
