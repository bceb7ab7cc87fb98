"""How long `pdctl up` takes on one host, and on many."""

import os
from statistics import median
from typing import NamedTuple

from benchmarks.cluster.fleet import Fleet, fleet


class Start(NamedTuple):
    """One start."""

    seconds: float  # until every pair of engines has served a request
    cpu_s: float  # of everything, on all hosts and here


def measure_starts(hosts: int, rounds: int) -> None:
    """Start a prefill and a decode engine on one host, and on each of many, in turn; print the medians."""
    starts: dict[int, list[Start]] = {1: [], hosts: []}
    for number in range(1, rounds + 1):
        for count in starts:
            with fleet(count) as made:
                start = _start(made)
            starts[count].append(start)
            took = f"ready in {start.seconds:.1f} s, {start.cpu_s:.1f} s of CPU"
            print(f"round {number}, {count} hosts: {took}", flush=True)
    _print_table(starts)


def _start(made: Fleet) -> Start:
    path = made.cli.write(made.topology(made.hosts, made.hosts))
    made.run("plan", path)  # the agent is on the hosts: it is sent once for each version
    before = made.cpu_s()
    seconds = made.run("up", "-d", path)
    start = Start(seconds, made.cpu_s() - before)
    state = made.status()["state"]
    if state != "ready":
        raise SystemExit(f"it is {state}, not ready")
    return start


def _print_table(starts: dict[int, list[Start]]) -> None:
    cores = os.cpu_count() or 1
    print(f"\n{cores} cores; medians of {len(starts[1])} rounds; with all cores busy a start takes CPU / {cores}")
    print("| hosts | engines | pairs | ready, s | CPU, s | CPU / cores, s | waiting, s | ready, of one host |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    alone = median(start.seconds for start in starts[1])
    for hosts, measured in starts.items():
        seconds = median(start.seconds for start in measured)
        cpu_s = median(start.cpu_s for start in measured)
        busy_s = cpu_s / cores
        print(
            f"| {hosts} | {2 * hosts} | {hosts**2} | {seconds:.1f} | {cpu_s:.1f} | {busy_s:.1f} "
            f"| {max(0.0, seconds - busy_s):.1f} | {seconds / alone:.2f} |"
        )
