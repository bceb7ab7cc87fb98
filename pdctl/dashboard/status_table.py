"""The table of a deployment's processes, for `pdctl status` and the dashboard."""

from collections.abc import Callable
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pdctl.dashboard.units import format_bytes, format_count, format_duration
from pdctl.deployment.models import DeploymentStatus, ProcessStatus, Progress

STATE_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "degraded": "bold yellow",
    "stopping": "yellow",
    "exited": "bold red",
    "down": "bold red",
    "unknown": "magenta",
}
_PROGRESS_WIDTH = 10
_STEP_WIDTH = 30


class _Column(NamedTuple):
    header: str
    cell: Callable[[ProcessStatus], Text]
    rank: int  # where the terminal is narrow, the columns of the highest rank go first
    right: bool = False


def render_status(status: DeploymentStatus, *, width: int | None = None) -> Table:
    """Return the deployment as a table, one row a process; columns that do not fit in ``width`` are left out."""
    table = process_table(status.processes, width=width)
    table.title = title = headline(status)
    table.title_justify = "left"
    table.min_width = title.cell_len if width is None else min(title.cell_len, width)
    notes = [status.reason] if status.reason else []
    notes += [f"{process.name}: {process.warning}" for process in status.processes if process.warning]
    table.caption = escape("\n".join(notes)) or None
    table.caption_justify = "left"
    return table


def headline(status: DeploymentStatus) -> Text:
    """Return the deployment's name, state, endpoint and model in one line."""
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(status.name, "bold").append("  ").append(status.state, STATE_STYLES[status.state])
    for part in (status.endpoint, status.model):
        if part:
            line.append("  ").append(part)
    return line


def process_table(processes: list[ProcessStatus], *, width: int | None = None) -> Table:
    """Return one row a process."""
    rows = [[column.cell(process) for column in _COLUMNS] for process in processes]
    kept = _fitting(rows, width)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for index in kept:
        table.add_column(_COLUMNS[index].header, justify="right" if _COLUMNS[index].right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(row[index] for index in kept))
    return table


def process_lines(processes: list[ProcessStatus], *, width: int) -> list[Text]:
    """Return the same table as lines, the header first: drawn several times a second, a `Table` costs too much."""
    rows = [[column.cell(process) for column in _COLUMNS] for process in processes]
    kept = [(_COLUMNS[index].right, _column_width(index, rows), index) for index in _fitting(rows, width)]
    header = [Text(column.header, "dim") for column in _COLUMNS]
    return [
        Text.assemble(*(_aligned(row[index], size, right) for right, size, index in kept)) for row in (header, *rows)
    ]


def progress_text(progress: Progress) -> str:
    """Return a step's name with its share done: ``loading weights 44%``."""
    if progress.total <= 0:
        return progress.step
    return f"{progress.step} {100 * min(progress.done, progress.total) // progress.total}%"


def exit_reason(code: int) -> str:
    """Return how a process ended: ``signal 9``, ``code 1``."""
    return f"signal {-code}" if code < 0 else f"code {code}"


def _fitting(rows: list[list[Text]], width: int | None) -> list[int]:
    """Return the indexes of the columns to show."""
    kept = list(range(len(_COLUMNS)))
    if width is None:
        return kept
    widths = [_column_width(index, rows) for index in kept]
    for index in sorted(kept, key=lambda index: -_COLUMNS[index].rank)[:-1]:
        if sum(widths[i] for i in kept) <= width:
            break
        kept.remove(index)
    return kept


def _aligned(cell: Text, width: int, right: bool) -> Text:
    space = " " * (width - 2 - cell.cell_len)
    return Text.assemble(space, cell, "  ") if right else Text.assemble(cell, space, "  ")


def _column_width(index: int, rows: list[list[Text]]) -> int:
    return 2 + max([len(_COLUMNS[index].header), *(row[index].cell_len for row in rows)])


def _state(process: ProcessStatus) -> Text:
    text = Text(process.state, STATE_STYLES[process.state])
    if process.state == "starting" and process.progress is not None:
        label = Text(progress_text(process.progress), "yellow")
        label.truncate(_STEP_WIDTH, overflow="ellipsis")
        return _progress_bar(process.progress).append(" ").append_text(label)
    if process.state == "exited" and process.exit_code is not None:
        return text.append(f" ({exit_reason(process.exit_code)})")
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
    _Column("HOST", lambda process: Text(process.host), 7),
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
