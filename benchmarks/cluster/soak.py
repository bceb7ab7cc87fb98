"""Hours of bad luck in minutes: engines are killed at random under a steady load.

Killed is what a deployment can go on without: any engine, of either role, with SIGKILL, while the other of its role
takes over. Not the router, through which all goes, nor an agent, with which all engines of its host end.
"""

import os
import random
import signal
import time
from contextlib import suppress

from benchmarks.cluster.fleet import Fleet, fleet
from benchmarks.cluster.load import Count, counted_load
from benchmarks.cluster.usage import GROUPS, YOUNG_S, Usage, look, print_usage
from tests.cluster.cluster import Process
from tests.e2e.chaos_load import learn, mixed_requests

HOSTS = 2
SAMPLE_S = 5.0
# By default an engine that has failed five times within minutes is given up, and waits longer each time: that is a
# crash loop, and here it is bad luck.
RESTART = {"max_restarts": 1000, "max_backoff_s": 1}


def soak(minutes: float, kill_every_s: float, seed: int, clients: int, pause_s: float) -> None:
    """Kill and count for so long; print what failed, and what the processes held over time."""
    with fleet(HOSTS) as made:
        made.run("up", "-d", made.cli.write(made.topology(made.hosts, made.hosts, RESTART)))
        url = str(made.status()["endpoint"])
        known = learn(url, mixed_requests())
        with counted_load(url, known, clients, pause_s) as count:
            kills, looks = _kill_and_look(made, count, 60 * minutes, kill_every_s, random.Random(seed))
        _print(minutes, kills, count, looks)
        last = made.status()
        print(f"in the end it is {last['state']}" + (f": {last['reason']}" if last["reason"] else ""))


def _kill_and_look(
    made: Fleet, count: Count, seconds: float, kill_every_s: float, chance: random.Random
) -> tuple[list[str], list[Usage]]:
    began = time.monotonic()
    kills: list[str] = []
    looks: list[Usage] = []
    next_kill, next_look = kill_every_s, YOUNG_S
    while (now := time.monotonic() - began) < seconds:
        if now >= next_look:
            looks.append(look(made.cluster, now))
            next_look += SAMPLE_S
        if now >= next_kill:
            kills.append(_kill_one(made, chance))
            next_kill += kill_every_s
            counted = f"{count.answered} answered, {len(count.failures)} failed"
            print(f"{now:6.0f} s: killed {kills[-1]}; {counted}", flush=True)
        time.sleep(max(0.0, began + min(next_kill, next_look, seconds) - time.monotonic()))
    return kills, looks


def _kill_one(made: Fleet, chance: random.Random) -> str:
    engines = sorted(process for process in made.cluster.processes() if GROUPS["engines"] in process.command)
    if not engines:
        return "nothing: no engine lives"
    chosen = chance.choice(engines)
    with suppress(ProcessLookupError):
        os.kill(chosen.pid, signal.SIGKILL)
    return f"the {_role(chosen)} engine of {chosen.host}"


def _role(engine: Process) -> str:
    return engine.command.partition("--splitwise-role ")[2].split()[0]


def _print(minutes: float, kills: list[str], count: Count, looks: list[Usage]) -> None:
    print(f"\n{minutes:g} minutes, {len(kills)} engines killed, {count.total} requests, {len(count.failures)} failed")
    print(f"availability {count.availability:.3f} %, the slowest answer took {count.slowest_s:.1f} s")
    for failure in count.failures[:20]:
        print(f"    {failure}")
    print_usage(looks)
