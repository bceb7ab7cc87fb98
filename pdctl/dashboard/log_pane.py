"""The log lines of a view: the latest of them kept, filtered, searched, and scrolled through."""

from bisect import bisect_left
from collections import deque

from pdctl.dashboard.lines import clean
from pdctl.deployment.models import LogLine

MAX_LOG_LINES = 5000
MAX_LINE_LENGTH = 1000


class LogPane:
    """Follows the latest lines until it is scrolled back or paused: then what it shows does not move any more."""

    def __init__(self) -> None:
        self.hidden: set[str] = set()  # processes whose lines are not shown
        self.text_filter = ""  # only lines that hold it are shown, whatever their case
        self.search_text = ""  # what is marked, whatever its case
        self.is_paused = False
        self.unseen = 0  # lines that came since it does not follow
        self.found = ""  # what the last search came to
        self.current: LogLine | None = None  # the line that was found
        self._lines: deque[LogLine] = deque(maxlen=MAX_LOG_LINES)
        self._frozen: list[LogLine] | None = None  # the lines that it stays at
        self._bottom = 0  # of the frozen lines: the number of the lowest that is shown, plus one

    def add(self, line: LogLine) -> None:
        """Take a line; the oldest is forgotten when there are too many."""
        self._lines.append(line.model_copy(update={"text": clean(line.text, MAX_LINE_LENGTH)}))
        if self._frozen is not None:
            self.unseen += 1

    @property
    def follows(self) -> bool:
        """Whether the latest line is shown, and will be."""
        return self._frozen is None

    def shows(self, line: LogLine) -> bool:
        """Whether the filters let a line through."""
        return line.process not in self.hidden and self.text_filter.lower() in line.text.lower()

    def window(self, rows: int) -> list[LogLine]:
        """Return the lines to show, the oldest first, at most ``rows``."""
        found: list[LogLine] = []
        if self._frozen is None:
            candidates = reversed(self._lines)
        else:
            candidates = (self._frozen[number] for number in range(self._bottom - 1, -1, -1))
        for line in candidates:
            if len(found) >= rows:
                break
            if self.shows(line):
                found.append(line)
        return found[::-1]

    @property
    def below(self) -> int:
        """How many of the lines that the filters let through are below those that are shown."""
        if self._frozen is None:
            return 0
        return sum(self.shows(self._frozen[number]) for number in range(self._bottom, len(self._frozen)))

    def scroll(self, back: int, rows: int) -> None:
        """Move back (negative: on) by so many lines; ``rows`` are shown. At the end, it follows again."""
        numbers = self._numbers()
        at = bisect_left(numbers, self._bottom) - back
        if at >= len(numbers) and not self.is_paused:
            self.follow()
        else:
            self._move_to(numbers, at, rows)

    def to_start(self, rows: int) -> None:
        """Show the oldest line that is kept."""
        self._move_to(self._numbers(), 0, rows)

    def follow(self) -> None:
        """Show the latest line, and those to come; while it is paused, the latest of then."""
        if self.is_paused and self._frozen is not None:
            self._bottom = len(self._frozen)
            return
        self._frozen, self.current, self.unseen, self.found = None, None, 0, ""

    def pause(self) -> None:
        """Stay at the lines that are shown; once more, follow."""
        self.is_paused = not self.is_paused
        if self.is_paused:
            self._freeze()
        else:
            self.follow()

    def search(self, text: str, rows: int) -> None:
        """Mark a text, and show the latest line that has it."""
        self.search_text, self.current, self.found = text, None, ""
        if text:
            self.find(older=True, rows=rows)

    def find(self, *, older: bool, rows: int) -> None:
        """Show the next line that has the searched text; the first time, the latest above the lowest that is shown."""
        if not self.search_text:
            return
        numbers, text = self._numbers(), self.search_text.lower()
        frozen = self._frozen or []
        matches = [number for number in numbers if text in frozen[number].text.lower()]
        at = self._place_of(matches, older=older)
        if not 0 <= at < len(matches):
            self.found = "no match" if not matches else f"no match {'above' if older else 'below'}"
            return
        self.current, self.found = frozen[matches[at]], f"match {at + 1} of {len(matches)}"
        place = bisect_left(numbers, matches[at])
        shown_until = bisect_left(numbers, self._bottom)
        if not shown_until - rows <= place < shown_until:
            self._move_to(numbers, place + 1 + rows // 2, rows)

    def show_all(self) -> None:
        """Drop the filters and the search."""
        self.hidden.clear()
        self.text_filter = ""
        self.search_text, self.current, self.found = "", None, ""

    def _place_of(self, matches: list[int], *, older: bool) -> int:
        """Which match comes next; out of range where none does."""
        here = next((number for number in matches if (self._frozen or [])[number] is self.current), None)
        if here is None:
            return bisect_left(matches, self._bottom) - 1
        return matches.index(here) + (-1 if older else 1)

    def _numbers(self) -> list[int]:
        """The numbers of the frozen lines that the filters let through."""
        return [number for number, line in enumerate(self._freeze()) if self.shows(line)]

    def _freeze(self) -> list[LogLine]:
        if self._frozen is None:
            self._frozen = list(self._lines)
            self._bottom, self.unseen = len(self._frozen), 0
        return self._frozen

    def _move_to(self, numbers: list[int], at: int, rows: int) -> None:
        """Show the first ``at`` of the lines that the filters let through, but no fewer than fill the rows."""
        shown = max(min(at, len(numbers)), min(rows, len(numbers)))
        self._bottom = numbers[shown - 1] + 1 if shown else 0
