"""The table of a deployment's processes, for `pdctl status` and the dashboard."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from pdctl.dashboard.lines import clean
from pdctl.dashboard.units import format_bytes, format_count, format_duration
from pdctl.deployment.models import DeploymentStatus, ProcessStatus, Progress

STATE_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "degraded": "bold yellow",
    "stopping": "yellow",
    "exited": "bold red",
    "restarting": "bold yellow",
    "failed": "bold red",
    "down": "bold red",
    "unreachable": "bold magenta",
    "unknown": "magenta",
}
HOST_STYLES = {"reached": "green", "unreachable": "bold magenta", "unknown": "magenta"}
_HOST = "HOST"  # a column that lines of hosts do without
_PROGRESS_WIDTH = 10
_STEP_WIDTH = 30


class _Column(NamedTuple):
    header: str
    cell: Callable[[ProcessStatus], Text]
    rank: int  # where the terminal is narrow, the columns of the highest rank go first
    right: bool = False


class TableLine(NamedTuple):
    """One line of the table."""

    text: Text
    process: str | None = None  # None: the header, or a host


def render_status(status: DeploymentStatus, *, width: int | None = None) -> RenderableType:
    """Return the deployment as a table, one row a process; columns that do not fit in ``width`` are left out."""
    notes = [status.reason] if status.reason else []
    notes += [f"{process.name}: {process.warning}" for process in status.processes if process.warning]
    notes += [f"{process.name}: {clean(process.last_line)}" for process in status.processes if process.last_line]
    table = process_table(status.processes, width=width)
    return Group(headline(status), *(line.text for line in table), *(Text(note, "italic") for note in notes))


def headline(status: DeploymentStatus) -> Text:
    """Return the deployment's name, state, endpoint and model in one line."""
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(status.name, "bold").append("  ").append(status.state, STATE_STYLES[status.state])
    for part in (status.endpoint, status.model):
        if part:
            line.append("  ").append(part)
    return line


def process_table(processes: Sequence[ProcessStatus], *, width: int | None = None) -> list[TableLine]:
    """Return the header and one row a process; where there are several hosts, each with a line of its own above.

    Made of lines, because drawn several times a second a rich `Table` costs too much.
    """
    if not processes:
        return []
    groups = by_host(processes)
    columns = [column for column in _COLUMNS if column.header != _HOST or len(groups) == 1]
    rows = {process.name: [column.cell(process) for column in columns] for process in processes}
    kept = _fitting(columns, list(rows.values()), width)
    lines = [TableLine(_row([Text(column.header, "dim") for column in columns], kept))]
    for host, members in groups.items():
        if len(groups) > 1:
            lines.append(TableLine(_host_line(host, members)))
        lines += [TableLine(_row(rows[process.name], kept), process.name) for process in members]
    return lines


def by_host(processes: Sequence[ProcessStatus]) -> dict[str, list[ProcessStatus]]:
    """Return the processes by their hosts, both in the given order."""
    groups: dict[str, list[ProcessStatus]] = {}
    for process in processes:
        groups.setdefault(process.host, []).append(process)
    return groups


def progress_text(progress: Progress) -> str:
    """Return a step's name with its share done: ``loading weights 44%``."""
    if progress.total <= 0:
        return progress.step
    return f"{progress.step} {100 * min(progress.done, progress.total) // progress.total}%"


def exit_reason(code: int) -> str:
    """Return how a process ended: ``signal 9``, ``code 1``."""
    return f"signal {-code}" if code < 0 else f"code {code}"


class _Place(NamedTuple):
    """A column that is shown."""

    number: int
    width: int
    right: bool


def _fitting(columns: Sequence[_Column], rows: Sequence[Sequence[Text]], width: int | None) -> list[_Place]:
    """Return the columns to show."""
    places = [
        _Place(index, 2 + max([len(column.header), *(row[index].cell_len for row in rows)]), column.right)
        for index, column in enumerate(columns)
    ]
    if width is None:
        return places
    for place in sorted(places, key=lambda place: -columns[place.number].rank)[:-1]:
        if sum(each.width for each in places) <= width:
            break
        places.remove(place)
    return places


def _row(cells: Sequence[Text], places: Sequence[_Place]) -> Text:
    row = Text.assemble(*(_aligned(cells[place.number], place) for place in places))
    row.no_wrap, row.overflow = True, "ellipsis"
    return row


def _aligned(cell: Text, place: _Place) -> Text:
    space = " " * (place.width - 2 - cell.cell_len)
    return Text.assemble(space, cell, "  ") if place.right else Text.assemble(cell, space, "  ")


def _host_line(host: str, processes: Sequence[ProcessStatus]) -> Text:
    state = _host_state(processes)
    line = Text(no_wrap=True, overflow="ellipsis").append(host, "bold underline").append("  ")
    line.append(state, HOST_STYLES[state]).append(f"  {len(processes)} process{'es' * (len(processes) != 1)}")
    if state == "reached":
        cpu = sum(process.cpu_percent for process in processes)
        memory = sum(process.memory_bytes for process in processes)
        line.append(f"  CPU {cpu:.0f}%  MEM {format_bytes(memory)}")
    return line


def _host_state(processes: Sequence[ProcessStatus]) -> str:
    states = {process.state for process in processes}
    return "unreachable" if states == {"unreachable"} else "unknown" if states == {"unknown"} else "reached"


def _state(process: ProcessStatus) -> Text:
    text = Text(process.state, STATE_STYLES[process.state])
    if process.state == "starting" and process.progress is not None:
        label = Text(progress_text(process.progress), "yellow")
        label.truncate(_STEP_WIDTH, overflow="ellipsis")
        return _progress_bar(process.progress).append(" ").append_text(label)
    if process.state == "restarting" and process.restart_in_s is not None:
        return text.append(f" in {process.restart_in_s:.0f}s")
    if process.state in ("exited", "failed") and process.exit_code is not None:
        return text.append(f" ({exit_reason(process.exit_code)})")
    if process.state == "ready" and process.draining:
        return text.append(", draining", "yellow")
    return text


def _progress_bar(progress: Progress) -> Text:
    share = progress.done / progress.total if progress.total > 0 else 0.0
    filled = round(_PROGRESS_WIDTH * min(1.0, max(0.0, share)))
    return Text("━" * filled, "green").append("━" * (_PROGRESS_WIDTH - filled), "bright_black")


def _number(value: float | None, style: str = "") -> Text:
    return Text("-", "dim") if value is None else Text(f"{value:.0f}", style)


def _waiting(process: ProcessStatus) -> Text:
    return _number(process.load.waiting, "yellow" if process.load.waiting else "")


def _kv_usage(process: ProcessStatus) -> Text:
    usage = process.load.kv_usage
    if usage is None:
        return Text("-", "dim")
    return Text(f"{100 * usage:.0f}%", "red" if usage >= 0.95 else "yellow" if usage >= 0.8 else "")


def _tokens(count: float | None) -> Text:
    """Prompt tokens whose KV came from a prefill engine."""
    return Text("-", "dim") if count is None else Text(format_count(count))


def _restarts(process: ProcessStatus) -> Text:
    return Text(str(process.restarts), "yellow" if process.restarts else "dim")


_COLUMNS = (
    _Column("PROCESS", lambda process: Text(process.name), 0),
    _Column("ROLE", lambda process: Text(process.role), 8),
    _Column(_HOST, lambda process: Text(process.host), 7),
    _Column("PID", lambda process: _number(process.pid), 6, right=True),
    _Column("PORT", lambda process: _number(process.port), 5, right=True),
    _Column("STATE", _state, 1),
    _Column("CPU", lambda process: Text(f"{process.cpu_percent:.0f}%"), 3, right=True),
    _Column("MEM", lambda process: Text(format_bytes(process.memory_bytes)), 4, right=True),
    _Column("RUN", lambda process: _number(process.load.running), 2, right=True),
    _Column("WAIT", _waiting, 2, right=True),
    _Column("KV", _kv_usage, 2, right=True),
    _Column("KV-IN", lambda process: _tokens(process.load.transferred_tokens), 4, right=True),
    _Column("VIA", lambda process: Text(",".join(process.load.transports) or "-"), 5),
    _Column("UP", lambda process: Text(format_duration(process.uptime_s)), 9, right=True),
    _Column("RST", _restarts, 10, right=True),
)
