"""The tables: what was measured, and what was asked for."""

import importlib.metadata
import math
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

import pdctl
from benchmarks.router import loads
from benchmarks.router.machine import describe

Figures = dict[tuple[str, str, str], list[float]]  # (contender, load, figure) -> one value a round

PEERS = ("sglang-router", "vllm-router")
# Ours, and who speaks the same to its engines.
OURS = {"pdctl-sglang": "sglang-router", "pdctl-vllm-nixl": "vllm-router", "pdctl-builtin": ""}
NO_LOG = {"pdctl-vllm-nixl": "pdctl-vllm-nixl-no-log"}
ADDED = {loads.P50: "added p50, ms", loads.P99: "added p99, ms", loads.CHUNK_P99: "chunk's added delay p99, ms"}


@dataclass(frozen=True)
class Goal:
    """Something that was asked for; `measure` says how near one of ours is, or None where a figure is missing."""

    title: str
    asked: str
    measure: Callable[["Medians", str], float | None]
    met: Callable[[float], bool]


class Medians:
    """Medians of the rounds."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self.contenders = list(dict.fromkeys(contender for contender, _, _ in figures))
        self.rows = list(dict.fromkeys((load, figure) for _, load, figure in figures))

    def get(self, contender: str, load: str, figure: str) -> float | None:
        """One median."""
        values = self._figures.get((contender, load, figure))
        return median(values) if values else None

    def added(self, contender: str, load: str, figure: str) -> float | None:
        """The median of what a router adds to what the engine alone takes in the same round."""
        through = self._figures.get((contender, load, figure), [])
        direct = self._figures.get(("direct", load, figure), [])
        differences = [value - base for value, base in zip(through, direct, strict=False)]
        return median(differences) if differences and contender != "direct" else None

    def over_best_peer(self, ours: str, load: str) -> float | None:
        """Our requests per second over those of the faster peer."""
        return _ratio(self.get(ours, load, loads.REQUESTS), self._peers(self.get, load, loads.REQUESTS, max))

    def over_own_peer(self, ours: str, load: str) -> float | None:
        """Our requests per second over those of the peer that speaks the same protocol."""
        return _ratio(self.get(ours, load, loads.REQUESTS), self.get(OURS[ours], load, loads.REQUESTS))

    def added_over_best_peer(self, ours: str, load: str, figure: str) -> float | None:
        """Our added latency over that of the better peer."""
        return _ratio(self.added(ours, load, figure), self._peers(self.added, load, figure, min))

    def logging(self, ours: str, load: str) -> float | None:
        """Our requests per second with the access log over those without it, measured just before or after."""
        with_log = self._figures.get((ours, load, loads.REQUESTS), [])
        without = self._figures.get((NO_LOG.get(ours, ""), load, loads.REQUESTS), [])
        ratios = [value / base for value, base in zip(with_log, without, strict=False)]
        return median(ratios) if ratios else None

    def _peers(
        self,
        figure_of: Callable[[str, str, str], float | None],
        load: str,
        figure: str,
        best: Callable[[list[float]], float],
    ) -> float | None:
        values = [figure_of(peer, load, figure) for peer in PEERS]
        known = [value for value in values if value is not None]
        return best(known) if known else None


def _goals() -> list[Goal]:
    goals: list[Goal] = []
    for load, title, least in (
        ("stream64", "64 at once, streaming", 3.0),
        ("plain64", "64 at once, not streaming", 2.0),
    ):
        goals.append(_faster(f"{title}: req/s over the faster peer's", load, least))
        goals.append(_compared(f"{title}: req/s over the peer's that speaks the same protocol", load))
    for load, title in (("stream8", "8 at once, streaming"), ("plain8", "8 at once, not streaming")):
        goals.append(_quicker(f"{title}: added p50 over the better peer's", load, loads.P50, 0.5))
        goals.append(_quicker(f"{title}: added p99 over the better peer's", load, loads.P99, 1.0))
    chunk = f"{loads.STREAMS} paced streams: "
    goals += [
        Goal(
            chunk + ADDED[loads.CHUNK_P99],
            "< 3",
            lambda medians, ours: medians.added(ours, "paced256", loads.CHUNK_P99),
            lambda value: value < 3,
        ),
        Goal(
            chunk + loads.LOST,
            "0",
            lambda medians, ours: medians.get(ours, "paced256", loads.LOST),
            lambda value: value == 0,
        ),
        Goal(
            f"{loads.IDLE} idle connections: {loads.RSS}",
            "< 150",
            lambda medians, ours: medians.get(ours, "idle5000", loads.RSS),
            lambda value: value < 150,
        ),
        _logging("64 at once, streaming: req/s with the access log over without", "stream64"),
        _logging("64 at once, not streaming: req/s with the access log over without", "plain64"),
    ]
    return goals


def _faster(title: str, load: str, least: float) -> Goal:
    return Goal(
        title,
        f"≥ {least:g}",
        lambda medians, ours: medians.over_best_peer(ours, load),
        lambda value: value >= least,
    )


def _compared(title: str, load: str) -> Goal:
    return Goal(title, "", lambda medians, ours: medians.over_own_peer(ours, load), lambda value: True)


def _quicker(title: str, load: str, figure: str, most: float) -> Goal:
    return Goal(
        title,
        f"≤ {most:g}",
        lambda medians, ours: medians.added_over_best_peer(ours, load, figure),
        lambda value: value <= most,
    )


def _logging(title: str, load: str) -> Goal:
    return Goal(title, "> 0.95", lambda medians, ours: medians.logging(ours, load), lambda value: value > 0.95)


def print_report(
    figures: Figures, *, rounds: int, seconds: float, workers: int, peers_bin: Path | None, others: float
) -> None:
    """Print both tables in Markdown, with the machine, the date and the versions; `others` is in cores."""
    medians = Medians(figures)
    print(f"\n{date.today()}, {describe()}, Python {platform.python_version()}, uvloop {_version('uvloop')}.")
    print(f"pdctl at commit {_commit()}, {workers} workers{_peers_versions(peers_bin)}.")
    print(f"Medians of {rounds} rounds of {seconds:g} s a load; other processes used {others:.2f} cores.\n")
    _print_figures(medians)
    _print_goals(medians)


def _print_figures(medians: Medians) -> None:
    titles = {load.name: load.title for load in loads.LOADS}
    print(f"| load | figure | {' | '.join(medians.contenders)} |\n|---|---|{'---:|' * len(medians.contenders)}")
    for load, figure in medians.rows:
        _print_row(titles[load], figure, [medians.get(contender, load, figure) for contender in medians.contenders])
        added = [medians.added(contender, load, figure) for contender in medians.contenders]
        if figure in ADDED and any(value is not None for value in added):
            _print_row(titles[load], ADDED[figure], added)


def _print_row(load: str, figure: str, values: list[float | None]) -> None:
    print(f"| {load} | {figure} | {' | '.join(_number(value) for value in values)} |")


def _print_goals(medians: Medians) -> None:
    ours = [name for name in OURS if name in medians.contenders]
    if not ours:
        return
    print(f"\n| goal | asked for | {' | '.join(ours)} |\n|---|---:|{'---:|' * len(ours)}")
    for goal in _goals():
        values = [goal.measure(medians, name) for name in ours]
        if any(value is not None for value in values):
            print(f"| {goal.title} | {goal.asked} | {' | '.join(_verdict(goal, value) for value in values)} |")


def _verdict(goal: Goal, value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "**too noisy**"
    return _number(value) if goal.met(value) else f"**{_number(value)}, not met**"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def _ratio(value: float | None, base: float | None) -> float | None:
    """Not a number where the base is not positive: an added latency that is lost in noise."""
    if value is None or base is None:
        return None
    return value / base if base > 0 else float("nan")


def _commit() -> str:
    """What was measured, as git knows it."""
    folder = Path(pdctl.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True)
    return described.stdout.strip() if described.returncode == 0 else "unknown to git"


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _peers_versions(peers_bin: Path | None) -> str:
    if peers_bin is None:
        return ""
    code = (
        "import importlib.metadata as m, sys; print(*(f'{name} {m.version(name)}' for name in sys.argv[1:]), sep=', ')"
    )
    command = [str(peers_bin / "python"), "-c", code, *PEERS]
    return ", " + subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
