"""Log lines as they may be shown: without what would act on the terminal, in the colour of their process."""

import re
from collections.abc import Sequence

PROCESS_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # titles, links and other strings to the terminal
    r"|\x1b.?|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
)


def clean(text: str, limit: int | None = None) -> str:
    """Return a log line without what would move the cursor or colour the screen; of a line redrawn, the last state.

    ``limit`` cuts it to so many characters, at a cost that does not grow with what is cut.
    """
    drawn = text.rstrip("\r\n").rsplit("\r", 1)[-1]
    if limit is not None:
        drawn = drawn[: 4 * limit]  # room for the escape sequences, which do not count
    return _CONTROL.sub("", drawn).expandtabs()[:limit]


def process_colour(name: str, names: Sequence[str]) -> str:
    """Return the colour of a process's log lines."""
    return PROCESS_COLOURS[names.index(name) % len(PROCESS_COLOURS)] if name in names else "white"
