"""The only place that prints: results and messages on stdout, warnings and errors on stderr."""

import json
import os
import sys
from functools import cached_property
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STYLES = {"info": "cyan", "success": "green", "warning": "yellow", "error": "bold red", "detail": "dim"}
PIPED_WIDTH = 200  # columns for tables where no terminal says how wide it is


class Terminal:
    """Writes to this process's stdout and stderr, in colour where they are terminals and NO_COLOR is not set."""

    @cached_property
    def console(self) -> "Console":
        """The rich console on stdout."""
        return _console(sys.stdout)

    @cached_property
    def error_console(self) -> "Console":
        """The rich console on stderr."""
        return _console(sys.stderr, stderr=True)

    @property
    def is_interactive(self) -> bool:
        """Whether stdout is a terminal on which a live display works."""
        return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")

    def info(self, message: str) -> None:
        """Say what happens."""
        _write(self.console, message)

    def success(self, message: str) -> None:
        """Say that what was asked for is done."""
        _write(self.console, message, style="success")

    def warning(self, message: str) -> None:
        """Say what is not as it should be, on stderr."""
        _write(self.error_console, message, prefix="warning")

    def error(self, message: str, detail: str = "") -> None:
        """Say in one line what failed, on stderr; `detail` follows it, indented, line by line."""
        _write(self.error_console, message, prefix="error")
        for line in detail.splitlines():
            _write(self.error_console, f"  {line}", style="detail")

    def print(self, renderable: "RenderableType" = "") -> None:
        """Print a rich renderable, or text exactly as it is."""
        if isinstance(renderable, str):
            _write(self.console, renderable)
        else:
            self.console.print(renderable)

    def print_json(self, value: object) -> None:
        """Print plain data as indented JSON, never coloured nor wrapped."""
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        sys.stdout.flush()


def _console(stream: TextIO, *, stderr: bool = False) -> "Console":
    from rich.console import Console
    from rich.theme import Theme

    width = None if stream.isatty() else PIPED_WIDTH
    return Console(stderr=stderr, theme=Theme(STYLES), highlight=False, width=width)


def _write(console: "Console", message: str, *, prefix: str = "", style: str = "") -> None:
    from rich.text import Text

    text = Text(message, style=style)
    if prefix:
        text = Text.assemble((f"{prefix}: ", prefix), text)
    console.print(text, soft_wrap=True)
