"""Log lines as they are drawn: made of segments, because laying out each line as text costs too much."""

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from pdctl.dashboard.lines import process_colour
from pdctl.dashboard.log_pane import LogPane
from pdctl.deployment.models import LogLine

_MATCH = Style(reverse=True)
_CURRENT_MATCH = Style(reverse=True, bold=True, color="yellow")


class LogRows:
    """The lines of a pane, the latest at the bottom, each cut to the width; blank rows fill the height."""

    def __init__(self, pane: LogPane, names: Sequence[str], width: int, height: int) -> None:
        self._lines = pane.window(height)
        self._names = names
        self._width, self._height = width, height
        self._current = pane.current
        self._searched = re.compile(re.escape(pane.search_text), re.IGNORECASE) if pane.search_text else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield each line as a coloured prefix and its text; then blank rows."""
        prefix_width = max(map(len, self._names), default=0)
        for line in self._lines:
            is_current = line is self._current
            prefix = f"{line.process:<{prefix_width}} {'>' if is_current else '│'} "
            style = Style.parse(process_colour(line.process, self._names))
            yield Segment(set_cell_size(prefix, min(self._width, cell_len(prefix))), style)
            yield from self._text(line, max(0, self._width - cell_len(prefix)), is_current)
            yield Segment.line()
        for _ in range(self._height - len(self._lines)):
            yield Segment.line()

    def _text(self, line: LogLine, width: int, is_current: bool) -> Iterator[Segment]:
        text = cut(line.text, width)
        if self._searched is None:
            yield Segment(text)
            return
        if is_current and (found := self._searched.search(line.text)) and cell_len(line.text[: found.end()]) >= width:
            text = cut("…" + line.text[max(0, found.start() - width // 3) :], width)
        at = 0
        for match in self._searched.finditer(text):
            yield Segment(text[at : match.start()])
            yield Segment(match[0], _CURRENT_MATCH if is_current else _MATCH)
            at = match.end()
        yield Segment(text[at:])


def cut(text: str, width: int) -> str:
    """Return a text of at most ``width`` cells; a mark says that something is missing."""
    text = text[: width + 1]  # no character is narrower than a cell, but for those that combine
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)) + "…" * (width > 0)
