"""The dashboard's screen as a pure function of its state and the terminal's size."""

from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from pdctl.dashboard.history import graph_lines
from pdctl.dashboard.lines import process_colour
from pdctl.dashboard.log_rows import LogRows, cut
from pdctl.dashboard.notes import Kind, Note
from pdctl.dashboard.pages import Page
from pdctl.dashboard.status_table import TableLine, headline
from pdctl.dashboard.traffic import Traffic
from pdctl.dashboard.units import format_bytes, format_count, format_rate
from pdctl.dashboard.view_state import KEYED_PROCESSES, KEYS, Question, ViewState

MAX_NOTES = 4
LOW = 16  # rows; below, logs and notes make place for the processes
GRAPHS_FROM = 20  # rows
_NOTE_STYLES: dict[Kind, str] = {"error": "bold red", "warning": "bold yellow", "work": "cyan", "success": "green"}


class Screen(NamedTuple):
    """What is drawn."""

    content: RenderableType
    log_rows: int  # how many lines of logs there is room for


class _Part(NamedTuple):
    renderable: RenderableType
    height: int
    rank: int  # where the terminal is low, the parts of the highest rank go first


def render(state: ViewState) -> Screen:
    """Return the screen for a terminal of the state's size: never higher, and no line wider."""
    width, height = state.size
    if state.page is not None:
        return _page_screen(state.page, state.size)
    last = [_last_line(state, width)] if height >= 10 or state.question or state.entry or state.hint else []
    above = _fitting(_parts_above(state, width, height), height - len(last)) if height > len(last) else []
    rows = max(0, height - sum(part.height for part in above) - len(last))
    logs = [LogRows(state.logs, state.process_names, width, rows)] if rows else []
    return Screen(Group(*(part.renderable for part in above), *logs, *last), max(1, rows))


def _page_screen(page: Page, size: tuple[int, int]) -> Screen:
    width, height = size
    rows = page.rows(size)
    shown = [_line(cut(row, width)) for row in rows]
    title = _ruled(_line(f"── {page.title} ", "bold"), width)
    keys = _line("↑ ↓ PgUp PgDn Home End   q back", "dim")
    blank = [_line("")] * max(0, height - 2 - len(shown))
    return Screen(Group(*[title, *shown, *blank, keys][:height]), 1)


def _parts_above(state: ViewState, width: int, height: int) -> list[_Part]:
    status = state.status
    if status is None:
        return [_Part(_line("waiting for the first status", "dim"), 1, 0)]
    notes = [_Part(line, 1, 1) for line in _notes(state, height)]
    graphs = graph_lines(state.history, width) if height >= GRAPHS_FROM else []
    least_logs = height // 3 if height >= LOW else 2
    rows = max(1, height - 4 - len(notes) - len(graphs) - least_logs)
    return [
        _Part(headline(status), 1, 0),
        *notes,
        _table(state, width, rows),
        *([_Part(Group(*graphs), len(graphs), 5)] if graphs else []),
        _Part(_totals_line(state.traffic), 1, 3),
        _Part(_rule(state, width), 1, 4),
    ]


def _fitting(parts: list[_Part], height: int) -> list[_Part]:
    """Return the parts that fit in ``height`` rows."""
    kept = list(parts)
    while len(kept) > 1 and sum(part.height for part in kept) > height:
        kept.remove(max(kept, key=lambda part: part.rank))
    return kept


def _notes(state: ViewState, height: int) -> list[Text]:
    notes, room = state.notes.shown, MAX_NOTES if height >= LOW else 1
    if len(notes) <= room:
        return [_note(note, state.notes.now) for note in notes]
    kept = notes[: max(1, room - 1)]
    lines = [_note(note, state.notes.now) for note in kept]
    return lines if room == 1 else [*lines, _line(f"... and {len(notes) - len(kept)} more: e reads them", "dim")]


def _note(note: Note, now: float) -> Text:
    style = _NOTE_STYLES[note.kind]
    return _line(note.line(now), style.removeprefix("bold ") if note.is_past else style)


def _table(state: ViewState, width: int, rows: int) -> _Part:
    names = state.process_names
    header, *body = state.table(width - 2) or [TableLine(Text())]
    shown = _around_selected(body, state.selected, rows - 1)
    left = sum(line.process is not None for line in body) - sum(line.process is not None for line in shown)
    lines = [_line("  ").append_text(header.text)] if body else []
    lines += [_marked(line, names, state) for line in shown]
    lines += [_line(f"... and {left} more", "dim")] if left else []
    return _Part(Group(*lines), len(lines), 2)


def _around_selected(body: list[TableLine], selected: str | None, rows: int) -> list[TableLine]:
    """Return the lines that there is room for, the selected one among them, and a row kept for what is left out."""
    if len(body) <= rows:
        return body
    room = max(1, rows - 1)
    at = next((number for number, line in enumerate(body) if selected is not None and line.process == selected), 0)
    first = min(max(0, at - room // 2), len(body) - room)
    return body[first : first + room]


def _marked(line: TableLine, names: list[str], state: ViewState) -> Text:
    """Return a line of the table behind its process's key; the selected process has a mark."""
    if line.process is None:
        return _line("").append_text(line.text)
    number = names.index(line.process) + 1
    key = str(number) if number <= KEYED_PROCESSES else " "
    style = "dim strike" if line.process in state.logs.hidden else process_colour(line.process, names)
    is_selected = line.process == state.selected
    text = _line("").append(key, style).append(">" if is_selected else " ", "bold").append_text(line.text)
    if is_selected:
        text.stylize("bold reverse", 2, 2 + len(line.process))
    return text


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
    logs = state.logs
    line = _line("").append("── logs ", "dim")
    if logs.hidden:
        shown = [name for name in state.process_names if name not in logs.hidden]
        named = f"of {shown[0]}" if len(shown) == 1 else f"without {', '.join(sorted(logs.hidden))}"
        line.append(f"{named} ", "yellow")
    if logs.text_filter:
        line.append(f"with “{logs.text_filter}” ", "yellow")
    if logs.search_text:
        line.append(f"search “{logs.search_text}” {logs.found} ", "yellow")
    if not logs.follows:
        line.append(
            f"{'paused' if logs.is_paused else 'scrolled'}, {logs.below} below, {logs.unseen} new ", "bold yellow"
        )
    return _ruled(line, width)


def _last_line(state: ViewState, width: int) -> Text:
    """Return the question, the text that is typed, or the keys."""
    if state.question is not None:
        return _question(state.question)
    if state.entry is not None:
        return (
            _line(f"{state.entry.purpose}: ", "bold")
            .append(f"{state.entry.text}█", "bold yellow")
            .append("   enter: keep   esc: drop", "dim")
        )
    if state.hint:
        return _line(state.hint, "bold yellow")
    labels = [(key.name, key.label.format(quit=state.quit_label), key.rank) for key in KEYS if key.label]
    if state.notes.shown:
        labels.insert(-1, ("x", "dismiss", 1))
    while len(labels) > 1 and sum(len(name) + len(label) + 3 for name, label, _ in labels) - 2 > width:
        labels.remove(max(labels, key=lambda label: label[2]))
    line = _line("")
    for name, label, _ in labels:
        line.append("  " if line.plain else "").append(name, "bold").append(f" {label}", "dim")
    return line


def _question(question: Question) -> Text:
    line = _line(f"{question.request}? {question.text}", "bold yellow")
    return line.append("   y: yes   any other key: no", "bold")


def _ruled(line: Text, width: int) -> Text:
    return line.append("─" * max(0, width - line.cell_len), "dim")


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")
