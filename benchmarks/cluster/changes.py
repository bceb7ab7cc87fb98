"""What clients notice of a rolling restart and of scaling: nothing, if the count of failures is 0."""

from benchmarks.cluster.fleet import NAME, fleet
from benchmarks.cluster.load import Count, counted_load
from tests.e2e.chaos_load import learn, mixed_requests

HOSTS = 2
_STEPS = (
    ("rolling restart of all engines", ("restart", "--rolling")),
    ("scale up, prefill and decode 2 to 3", ("scale", "prefill[0]=2", "decode[0]=2")),
    ("scale down, 3 to 2", ("scale", "prefill[0]=1", "decode[0]=1")),
)


def measure_changes(rounds: int, clients: int, pause_s: float) -> None:
    """Change a deployment of two prefill and two decode engines under a steady load; print what was lost."""
    print(f"{clients} clients, each with a pause of {pause_s:g} s after each answer")
    print("| change | round | seconds | requests | failed | slowest, s |\n|---|---:|---:|---:|---:|---:|", flush=True)
    with fleet(HOSTS) as made:
        made.run("up", "-d", made.cli.write(made.topology(made.hosts, made.hosts)))
        url = str(made.status()["endpoint"])
        known = learn(url, mixed_requests())
        for number in range(1, rounds + 1):
            for title, command in _STEPS:
                with counted_load(url, known, clients, pause_s) as count:
                    seconds = made.run(*command, "--name", NAME)
                _print_row(title, number, seconds, count)


def _print_row(title: str, number: int, seconds: float, count: Count) -> None:
    row = f"| {title} | {number} | {seconds:.1f} | {count.total} | {len(count.failures)} | {count.slowest_s:.1f} |"
    print(row, flush=True)
    for failure in count.failures:
        print(f"    {failure}", flush=True)
