"""What the dashboard knows and how it is set: changed by status, log lines and keys, drawn by layout.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pdctl.dashboard.history import History
from pdctl.dashboard.log_pane import LogPane
from pdctl.dashboard.notes import Notes
from pdctl.dashboard.pages import Page, help_page, notes_page, plan_page
from pdctl.dashboard.status_table import TableLine, by_host, process_table
from pdctl.dashboard.traffic import Traffic
from pdctl.deployment.models import DeploymentStatus, LogLine, ProcessStatus
from pdctl.planning.plan import Plan

KEYED_PROCESSES = 9  # the keys 1 to 9

Operation = Literal["restart", "drain", "undrain"]


class Request(NamedTuple):
    """What the user wants done with a process."""

    operation: Operation
    process: str

    def __str__(self) -> str:
        return f"{self.operation} {self.process}"


class Question(NamedTuple):
    """What is asked before something is done."""

    request: Request
    text: str


@dataclass
class Entry:
    """A text that is being typed."""

    purpose: Literal["search", "filter"]
    text: str = ""


@dataclass
class ViewState:
    """The state of one dashboard."""

    quit_label: str = "quit view"  # what q does
    size: tuple[int, int] = (80, 24)  # columns, rows
    log_rows: int = 1  # as many lines of logs as were drawn last
    status: DeploymentStatus | None = None
    plan: Plan | None = None
    traffic: Traffic = field(default_factory=Traffic)
    history: History = field(default_factory=History)
    notes: Notes = field(default_factory=Notes)
    logs: LogPane = field(default_factory=LogPane)
    selected: str | None = None  # a process
    entry: Entry | None = None  # keys go into it
    question: Question | None = None  # the next key answers it
    page: Page | None = None  # is read instead of all else
    requests: list[Request] = field(default_factory=list)  # confirmed, and not begun
    hint: str = ""  # why the last key did nothing
    quit: bool = False
    _tables: dict[int, list[TableLine]] = field(default_factory=dict)  # of the last status, by width

    def set_status(self, status: DeploymentStatus, now: float) -> None:
        """Take the deployment's state at the time ``now``."""
        self.status = status
        self._tables.clear()
        self.traffic.update(status, now)
        self.history.add(self.traffic, now)
        self.notes.look(status, now)
        if self.selected not in self.process_names:
            self.selected = None

    def add_log(self, line: LogLine) -> None:
        """Take a log line."""
        self.logs.add(line)

    @property
    def processes(self) -> list[ProcessStatus]:
        """The processes in the order of the table."""
        groups = by_host(self.status.processes if self.status else [])
        return [process for processes in groups.values() for process in processes]

    @property
    def process_names(self) -> list[str]:
        """Their names."""
        return [process.name for process in self.processes]

    def table(self, width: int) -> list[TableLine]:
        """The table of the processes. Drawing asks for it far more often than it changes."""
        if width not in self._tables:
            self._tables[width] = process_table(self.processes, width=width)
        return self._tables[width]

    def press(self, key: str) -> None:
        """Do what a key stands for."""
        self.hint = ""
        if self.entry is not None:
            self._type(self.entry, key)
        elif self.question is not None:
            self._answer(self.question, key)
        elif self.page is not None:
            self._read(self.page, key)
        elif key.isdecimal() and key.isascii():
            self._select_number(int(key))
        elif action := ACTIONS.get(key):
            action(self)

    def _type(self, entry: Entry, key: str) -> None:
        if key == "enter":
            self.entry = None
            return
        if key == "escape":
            self.entry, entry.text = None, ""
        elif key == "backspace":
            entry.text = entry.text[:-1]
        elif len(key) == 1:
            entry.text += key
        if entry.purpose == "filter":
            self.logs.text_filter = entry.text
        else:
            self.logs.search(entry.text, self.log_rows)

    def _answer(self, question: Question, key: str) -> None:
        self.question = None
        if key == "y":
            self.requests.append(question.request)

    def _read(self, page: Page, key: str) -> None:
        rows = page.page(self.size)
        moves = {"up": 1, "down": -1, "page up": rows, "page down": -rows, " ": -rows, "home": 10**9, "end": -(10**9)}
        if key in moves:
            page.scroll(moves[key], self.size)
        elif key in ("q", "escape", "enter", "o", "e", "?"):
            self.page = None

    def _select_number(self, number: int) -> None:
        names = self.process_names[:KEYED_PROCESSES]
        if 1 <= number <= len(names):
            name = names[number - 1]
            self.selected = None if self.selected == name else name

    def select_next(self, step: int) -> None:
        """Select the process after (or before) the selected one; beyond the last and the first, there is none."""
        names: list[str | None] = [None, *self.process_names]
        self.selected = names[(names.index(self.selected) + step) % len(names)]

    def scroll(self, back: int) -> None:
        """Scroll the logs by so many lines."""
        self.logs.scroll(back, self.log_rows)

    def ask(self, operation: Literal["restart", "drain"]) -> None:
        """Ask whether to do something with the selected process."""
        process = next((process for process in self.processes if process.name == self.selected), None)
        if process is None:
            self.hint = f"select the process to {operation} first: ← → or its number"
        elif operation == "drain" and process.role == "router":
            self.hint = "the router cannot be drained: engines are, by the router"
        elif operation == "drain" and process.draining:
            self.question = Question(Request("undrain", process.name), "it gets requests again")
        elif operation == "drain":
            self.question = Question(Request("drain", process.name), "it gets no new requests")
        else:
            serves = process.state == "ready" and process.role != "router" and not process.draining
            text = "it is not drained" if serves else "it is stopped and started again"
            self.question = Question(Request("restart", process.name), text)

    def toggle_lines(self) -> None:
        """Hide or show the lines of the selected process."""
        if self.selected is not None:
            self.logs.hidden ^= {self.selected}

    def only_lines(self) -> None:
        """Show the lines of the selected process only."""
        if self.selected is not None:
            self.logs.hidden = set(self.process_names) - {self.selected}

    def enter(self, purpose: Literal["search", "filter"]) -> None:
        """Take the next keys as a text."""
        self.entry = Entry(purpose)
        if purpose == "filter":
            self.logs.text_filter = ""
        else:
            self.logs.search("", self.log_rows)

    def open_plan(self) -> None:
        """Show the plan of the selected process, or all of it."""
        if self.plan is not None:
            self.page = plan_page(self.plan, self.selected)

    def open_notes(self) -> None:
        """Show all notes in full."""
        self.page = notes_page(self.notes.shown, self.notes.now)

    def open_help(self) -> None:
        """Show what the keys do."""
        self.page = help_page((key.name, key.help.format(quit=self.quit_label)) for key in KEYS)

    def leave(self) -> None:
        """End the view."""
        self.quit = True


class Key(NamedTuple):
    """A key, or several of a kind."""

    name: str
    help: str
    actions: dict[str, Callable[[ViewState], None]]  # by what the keyboard calls it
    label: str = ""  # in the last line of the screen; empty: not there
    rank: int = 0  # where the line is narrow, labels of the highest rank go first


KEYS = (
    Key(
        "↑ ↓",
        "scroll the logs by a line; at their end they go on",
        {"up": lambda view: view.scroll(1), "down": lambda view: view.scroll(-1)},
        "scroll",
        9,
    ),
    Key(
        "PgUp PgDn",
        "scroll the logs by a page",
        {
            "page up": lambda view: view.scroll(max(1, view.log_rows - 1)),
            "page down": lambda view: view.scroll(-max(1, view.log_rows - 1)),
        },
    ),
    Key(
        "Home End",
        "go to the oldest line that is kept; follow the latest again",
        {"home": lambda view: view.logs.to_start(view.log_rows), "end": lambda view: view.logs.follow()},
    ),
    Key(
        "/",
        "search the logs; Esc drops the text",
        {"/": lambda view: view.enter("search")},
        "search",
        2,
    ),
    Key(
        "n N",
        "go to the next match below, above",
        {
            "n": lambda view: view.logs.find(older=False, rows=view.log_rows),
            "N": lambda view: view.logs.find(older=True, rows=view.log_rows),
        },
    ),
    Key("f", "show only lines with a text", {"f": lambda view: view.enter("filter")}, "filter", 5),
    Key("p", "pause the logs, or go on", {"p": lambda view: view.logs.pause()}, "pause", 7),
    Key(
        "← →",
        "select a process; so does its number, 1 to 9",
        {"left": lambda view: view.select_next(-1), "right": lambda view: view.select_next(1)},
        "process",
        8,
    ),
    Key("h", "hide the lines of the selected process, or show them", {"h": ViewState.toggle_lines}),
    Key("l", "show the lines of the selected process only", {"l": ViewState.only_lines}),
    Key("a", "show all lines, without filter and search", {"a": lambda view: view.logs.show_all()}),
    Key("r", "restart the selected process", {"r": lambda view: view.ask("restart")}, "restart", 3),
    Key(
        "d",
        "drain the selected engine: no new requests; once more, undrain it",
        {"d": lambda view: view.ask("drain")},
        "drain",
        4,
    ),
    Key("o", "open the plan, of the selected process if there is one", {"o": ViewState.open_plan}, "plan", 6),
    Key("e", "read the notes in full: errors, warnings, outcomes", {"e": ViewState.open_notes}),
    Key(
        "x X",
        "dismiss the first note, all notes",
        {"x": lambda view: view.notes.dismiss(), "X": lambda view: view.notes.dismiss_all()},
    ),
    Key("?", "this list", {"?": ViewState.open_help}, "help", 1),
    Key("q", "{quit}", {"q": ViewState.leave}, "{quit}"),
)
ACTIONS = {name: action for key in KEYS for name, action in key.actions.items()}
