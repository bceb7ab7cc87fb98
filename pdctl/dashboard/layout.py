"""The dashboard's screen as a pure function of its state and the terminal's size."""

from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from pdctl.dashboard.status_table import headline, process_lines
from pdctl.dashboard.traffic import Traffic
from pdctl.dashboard.units import format_bytes, format_count, format_rate
from pdctl.dashboard.view_state import KEYED_PROCESSES, ViewState
from pdctl.deployment.models import DeploymentStatus, LogLine

PROCESS_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
MAX_NOTES = 4
LOW = 16  # rows; below, logs and notes make place for the processes
_LOCAL_PREFILL = "prompt tokens itself: their KV did not come from a prefill engine"
_KEYS = (("1-9", "process"), ("/", "filter"), ("a", "all"), ("p", "pause"))


class _Part(NamedTuple):
    renderable: RenderableType
    height: int
    rank: int  # where the terminal is low, the parts of the highest rank go first


def render(state: ViewState, size: tuple[int, int]) -> RenderableType:
    """Return the screen for a terminal of ``size`` (columns, rows): never higher, and no line wider."""
    width, height = size
    above = _fitting(_parts_above(state, width, height), height)
    keys = [_keys_line(state)] if height >= 10 else []
    rows = height - sum(part.height for part in above) - len(keys)
    logs = [LogRows(state.last_lines(rows), state.process_names, width, rows)] if rows > 0 else []
    return Group(*(part.renderable for part in above), *logs, *keys)


class LogRows:
    """Log lines, the latest at the bottom; made of segments because laying out each line as text costs too much."""

    def __init__(self, lines: list[LogLine], names: list[str], width: int, height: int) -> None:
        self._lines = lines
        self._names = names
        self._width, self._height = width, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield each line as a coloured prefix and its text, cut to the width; then blank rows."""
        prefix_width = max(map(len, self._names), default=0)
        for line in self._lines:
            style = Style.parse(process_colour(line.process, self._names))
            prefix, text = f"{line.process:<{prefix_width}} │ ", line.text
            yield Segment(set_cell_size(prefix, min(self._width, cell_len(prefix))), style)
            yield Segment(_cut(text, max(0, self._width - cell_len(prefix))))
            yield Segment.line()
        for _ in range(self._height - len(self._lines)):
            yield Segment.line()


def process_colour(name: str, names: list[str]) -> str:
    """Return the colour of a process's log lines."""
    return PROCESS_COLOURS[names.index(name) % len(PROCESS_COLOURS)] if name in names else "white"


def _parts_above(state: ViewState, width: int, height: int) -> list[_Part]:
    status = state.status
    if status is None:
        return [_Part(_line("waiting for the first status", "dim"), 1, 0)]
    notes = [_Part(note, 1, 1) for note in _notes(status, state.traffic, height)]
    least_logs = height // 3 if height >= LOW else 2
    rows = max(1, height - 5 - len(notes) - least_logs)
    return [
        _Part(headline(status), 1, 0),
        *notes,
        _table(state, status, width, rows),
        _Part(_totals_line(state.traffic), 1, 3),
        _Part(_rule(state, width), 1, 4),
    ]


def _fitting(parts: list[_Part], height: int) -> list[_Part]:
    """Return the parts that fit in ``height`` rows."""
    kept = list(parts)
    while len(kept) > 1 and sum(part.height for part in kept) > height:
        kept.remove(max(kept, key=lambda part: part.rank))
    return kept


def _notes(status: DeploymentStatus, traffic: Traffic, height: int) -> list[Text]:
    """Return what the user should not overlook."""
    texts = [status.reason] if status.reason else []
    texts += [f"{process.name}: {process.warning}" for process in status.processes if process.warning]
    texts += [f"{name} computed {format_count(tokens)} {_LOCAL_PREFILL}" for name, tokens in traffic.local_by.items()]
    return [_line(text, "bold yellow") for text in texts[: MAX_NOTES if height >= LOW else 1]]


def _table(state: ViewState, status: DeploymentStatus, width: int, rows: int) -> _Part:
    processes = status.processes
    if len(processes) > rows:
        processes = processes[: max(1, rows - 1)]
    keys = [Text(" "), *(_key_cell(number, process.name, state) for number, process in enumerate(processes))]
    table = process_lines(processes, width=width - 2)
    lines = [_line("").append_text(key).append(" ").append_text(row) for key, row in zip(keys, table, strict=True)]
    left = len(status.processes) - len(processes)
    if left:
        lines.append(_line(f"... and {left} more", "dim"))
    return _Part(Group(*lines), len(lines), 2)


def _key_cell(number: int, name: str, state: ViewState) -> Text:
    key = str(number + 1) if number < KEYED_PROCESSES else " "
    if name in state.hidden:
        return Text(key, "dim strike")
    return Text(key, process_colour(name, state.process_names))


def _totals_line(traffic: Traffic) -> Text:
    local = traffic.local_tokens.total
    line = _line("")
    line.append(format_rate(traffic.requests.rate), "bold").append(" req/s  ")
    line.append(format_rate(traffic.generated_tokens.rate), "bold").append(" tok/s  KV ")
    line.append(format_bytes(traffic.kv_bytes.total), "bold").append(
        f", {format_bytes(traffic.kv_bytes.rate)}/s  prompt: "
    )
    line.append(format_count(traffic.transferred_tokens.total), "bold").append(" transferred, ")
    return line.append(format_count(local), "bold yellow" if local else "bold").append(" local")


def _rule(state: ViewState, width: int) -> Text:
    line = _line("── logs ", "dim")
    if state.hidden:
        line.append(f"without {', '.join(sorted(state.hidden))} ", "yellow")
    if state.typing:
        line.append(f"/{state.text_filter}█ ", "bold yellow")
    elif state.text_filter:
        line.append(f"with “{state.text_filter}” ", "yellow")
    if state.frozen is not None:
        line.append(f"paused, {state.unseen} new ", "bold yellow")
    return line.append("─" * max(0, width - line.cell_len), "dim")


def _keys_line(state: ViewState) -> Text:
    if state.typing:
        return _line("enter: keep the filter   esc: drop it", "dim")
    line = _line("")
    for key, meaning in (*_KEYS, ("q", state.quit_label)):
        line.append(key, "bold").append(f" {meaning}   ", "dim")
    return line


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _cut(text: str, width: int) -> str:
    text = text[: width + 1]  # no character is narrower than a cell, but for those that combine
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)) + "…" * (width > 0)
