"""The figures of the last minutes, and how they are drawn: a line of bars for each."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rich.text import Text

from pdctl.dashboard.traffic import Traffic
from pdctl.dashboard.units import format_bytes, format_count, format_latency, format_rate

SPAN_S = 300.0
MIN_BAR_S = 2.5  # a bar holds at least one of the samples, which come about once a second
_MAX_SAMPLES = 600
_BARS = "▁▂▃▄▅▆▇█"
_NAME_WIDTH, _VALUE_WIDTH = 7, 9
_MIN_WIDTH = 40  # of a graph with its name and value


class Sample(NamedTuple):
    """The figures at one time; None: there was nothing to measure."""

    time: float
    values: tuple[float | None, ...]  # in the order of GRAPHS


class Graph(NamedTuple):
    """One figure: its name, where it comes from, and how it is written."""

    name: str
    value: Callable[[Traffic], float | None]
    write: Callable[[float], str]


GRAPHS = (
    Graph("tok/s", lambda traffic: traffic.generated_tokens.rate, format_rate),
    Graph("TTFT", lambda traffic: traffic.ttft.value, format_latency),
    Graph("TPOT", lambda traffic: traffic.tpot.value, format_latency),
    Graph("KV", lambda traffic: traffic.kv_bytes.rate, lambda rate: f"{format_bytes(rate)}/s"),
    Graph("waiting", lambda traffic: traffic.waiting, format_count),
)


class History:
    """Samples of the last SPAN_S."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=_MAX_SAMPLES)

    def add(self, traffic: Traffic, now: float) -> None:
        """Take the figures as they are at the time ``now``."""
        self.samples.append(Sample(now, tuple(graph.value(traffic) for graph in GRAPHS)))
        while now - self.samples[0].time > SPAN_S:
            self.samples.popleft()


def graph_lines(history: History, width: int) -> list[Text]:
    """Return all graphs, side by side as far as there is room."""
    columns = min(len(GRAPHS), max(1, width // _MIN_WIDTH))
    room = (width - 2 * (columns - 1)) // columns
    graphs = [_graph(number, history, room) for number in range(len(GRAPHS))]
    rows = [graphs[first : first + columns] for first in range(0, len(graphs), columns)]
    return [Text("  ", no_wrap=True, overflow="crop").join(row) for row in rows]


def bars(samples: Iterable[tuple[float, float | None]], count: int) -> list[float | None]:
    """Return the mean of the (time, value) samples in each of ``count`` bars, the last one being the latest.

    Bars begin at multiples of their width in time, so that they do not change while they move.
    """
    known = list(samples)
    if not known or count < 1:
        return [None] * count
    width = max(SPAN_S / count, MIN_BAR_S)
    last = int(known[-1][0] // width)
    values: list[list[float]] = [[] for _ in range(count)]
    for time, value in known:
        place = count - 1 - (last - int(time // width))
        if value is not None and place >= 0:
            values[place].append(value)
    return [sum(each) / len(each) if each else None for each in values]


def sparkline(values: Iterable[float | None]) -> str:
    """Return a character for each value, from 0 to the highest of them; a space where there is none."""
    known = list(values)
    highest = max((value for value in known if value is not None), default=0.0)
    return "".join(_bar(value, highest) for value in known)


def _bar(value: float | None, highest: float) -> str:
    if value is None:
        return " "
    return _BARS[min(len(_BARS) - 1, int(len(_BARS) * value / highest))] if highest > 0 else _BARS[0]


def _graph(number: int, history: History, width: int) -> Text:
    graph = GRAPHS[number]
    latest = history.samples[-1].values[number] if history.samples else None
    text = Text().append(f"{graph.name:<{_NAME_WIDTH}} ", "dim")
    text.append(f"{'-' if latest is None else graph.write(latest):>{_VALUE_WIDTH}} ", "bold")
    room = max(0, width - text.cell_len)
    series = ((sample.time, sample.values[number]) for sample in history.samples)
    text.append(sparkline(bars(series, room)), "cyan")
    text.truncate(width, pad=True)
    return text
