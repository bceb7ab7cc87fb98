"""What the dashboard knows and how it is set: changed by status, log lines and keys, drawn by layout.py."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pdctl.dashboard.traffic import Traffic
from pdctl.deployment.models import DeploymentStatus, LogLine

MAX_LOG_LINES = 2000
MAX_LINE_LENGTH = 1000
KEYED_PROCESSES = 9  # the keys 1 to 9

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # titles, links and other strings to the terminal
    r"|\x1b.?|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
)


@dataclass
class ViewState:
    """The state of one dashboard."""

    quit_label: str = "quit view"  # what q does
    status: DeploymentStatus | None = None
    traffic: Traffic = field(default_factory=Traffic)
    logs: deque[LogLine] = field(default_factory=lambda: deque(maxlen=MAX_LOG_LINES))
    hidden: set[str] = field(default_factory=set)  # processes whose lines are not shown
    text_filter: str = ""  # only lines that hold it are shown, whatever their case
    typing: bool = False  # keys go into the filter
    frozen: Sequence[LogLine] | None = None  # while paused: the lines to show
    unseen: int = 0  # lines that came while paused
    quit: bool = False

    def set_status(self, status: DeploymentStatus, now: float) -> None:
        """Take the deployment's state at the time ``now``."""
        self.status = status
        self.traffic.update(status, now)

    def add_log(self, line: LogLine) -> None:
        """Take a log line; the oldest is forgotten when there are too many."""
        self.logs.append(line.model_copy(update={"text": clean(line.text, MAX_LINE_LENGTH)}))
        if self.frozen is not None:
            self.unseen += 1

    @property
    def process_names(self) -> list[str]:
        """The processes in the order of the table."""
        return [process.name for process in self.status.processes] if self.status else []

    def shows(self, line: LogLine) -> bool:
        """Whether the filters let a line through."""
        return line.process not in self.hidden and self.text_filter.lower() in line.text.lower()

    def last_lines(self, count: int) -> list[LogLine]:
        """Return the latest lines that the filters let through, at most ``count``."""
        found: list[LogLine] = []
        for line in reversed(self.logs if self.frozen is None else self.frozen):
            if len(found) >= count:
                break
            if self.shows(line):
                found.append(line)
        return found[::-1]

    def press(self, key: str) -> None:
        """Do what a key stands for."""
        if self.typing:
            self._type(key)
        elif key.isdecimal() and key.isascii():
            self._toggle(int(key))
        elif action := _ACTIONS.get(key):
            action(self)

    def _type(self, key: str) -> None:
        if key == "enter":
            self.typing = False
        elif key == "escape":
            self.typing, self.text_filter = False, ""
        elif key == "backspace":
            self.text_filter = self.text_filter[:-1]
        elif len(key) == 1:
            self.text_filter += key

    def _toggle(self, number: int) -> None:
        names = self.process_names[:KEYED_PROCESSES]
        if 1 <= number <= len(names):
            self.hidden ^= {names[number - 1]}

    def _start_typing(self) -> None:
        self.typing, self.text_filter = True, ""

    def _show_all(self) -> None:
        self.hidden.clear()
        self.text_filter = ""

    def _pause(self) -> None:
        self.frozen = tuple(self.logs) if self.frozen is None else None
        self.unseen = 0

    def _quit(self) -> None:
        self.quit = True


_ACTIONS = {
    "/": ViewState._start_typing,
    "a": ViewState._show_all,
    "p": ViewState._pause,
    "q": ViewState._quit,
}


def clean(text: str, limit: int | None = None) -> str:
    """Return a log line without what would move the cursor or colour the screen; of a line redrawn, the last state.

    ``limit`` cuts it to so many characters, at a cost that does not grow with what is cut.
    """
    drawn = text.rstrip("\r\n").rsplit("\r", 1)[-1]
    if limit is not None:
        drawn = drawn[: 4 * limit]  # room for the escape sequences, which do not count
    return _CONTROL.sub("", drawn).expandtabs()[:limit]
