"""Measures pdctl on hosts made of namespaces of this machine; only root can make them.

python -m benchmarks.cluster up [--hosts 8] [--rounds 3]
python -m benchmarks.cluster changes [--rounds 3]
python -m benchmarks.cluster soak [--minutes 30] [--kill-every 20]

up: how long a start takes with a prefill and a decode engine of a tiny model on one host, and on each of many.
changes: rolling restart and scaling under a steady load; how many requests fail.
soak: a steady load while an engine chosen at random is killed every so often; what fails, and what grows.
"""

import argparse

from benchmarks.cluster.changes import measure_changes
from benchmarks.cluster.soak import soak
from benchmarks.cluster.start import measure_starts
from benchmarks.router.machine import describe
from tests.cluster.cluster_host import missing

CLIENTS, PAUSE_S = 3, 0.3


def main() -> None:
    """Run one measurement."""
    options = _parse()
    reason = missing()
    if reason is not None:
        raise SystemExit(reason)
    print(describe(), flush=True)
    if options.what == "up":
        measure_starts(options.hosts, options.rounds)
    elif options.what == "changes":
        measure_changes(options.rounds, options.clients, options.pause)
    else:
        soak(options.minutes, options.kill_every, options.seed, options.clients, options.pause)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("up", "changes", "soak"))
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=CLIENTS, help="of the steady load")
    parser.add_argument("--pause", type=float, default=PAUSE_S, help="seconds between an answer and the next request")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill-every", type=float, default=20.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of what is killed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
