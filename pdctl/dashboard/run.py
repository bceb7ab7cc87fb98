"""Runs the dashboard: follows a deployment, draws, and takes keys."""

import asyncio
import errno
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from time import monotonic

from rich.console import Console
from rich.live import Live

from pdctl.dashboard.keyboard import key_presses
from pdctl.dashboard.layout import render
from pdctl.dashboard.operations import Operations
from pdctl.dashboard.plain import run_plain
from pdctl.dashboard.source import Source, log_lines, run_until_first, statuses
from pdctl.dashboard.view_state import ViewState
from pdctl.errors import PdctlError

FRAME_INTERVAL_S = 0.25
LOG_TAIL = 500


async def run_dashboard(source: Source, console: Console, *, quit_label: str = "quit view") -> None:
    """Show the deployment until the user presses q, the terminal is gone, or this is cancelled (Ctrl-C).

    ``quit_label`` says what the caller makes of q. On a terminal it is a live screen, elsewhere lines (where only
    cancelling ends it). An error of ``source`` that a later look may not have is shown; others are raised, after the
    terminal is set back.
    """
    if can_draw(console):
        await _Screen(source, console, quit_label).run()
    else:
        await run_plain(source, console, tail=LOG_TAIL)


def can_draw(console: Console) -> bool:
    """Return whether ``console`` is a terminal that a live screen works on, and that is ours to draw on now."""
    if not console.is_terminal or console.is_dumb_terminal or not os.environ.get("TERM"):
        return False
    return console.encoding.startswith("utf") and not _in_background()


class _Screen:
    """One dashboard on a terminal; all its parts run in one event loop."""

    def __init__(self, source: Source, console: Console, quit_label: str) -> None:
        self._source = source
        self._console = console
        self._state = ViewState(quit_label=quit_label, size=console.size)
        self._operations = Operations(source, self._state.notes, self._on_change)
        self._changed = True
        self._pressed = asyncio.Event()

    async def run(self) -> None:
        """Show it until quit."""
        try:
            await self._show()
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the terminal hung up, which ends the view as the key does
                raise

    async def _show(self) -> None:
        live = Live(console=self._console, screen=True, auto_refresh=False)
        with live, self._keys():
            try:
                await run_until_first(self._follow_status(), self._follow_logs(), self._draw(live))
            finally:
                await self._operations.close()

    def _keys(self) -> AbstractContextManager[None]:
        if not sys.stdin.isatty():
            return nullcontext()
        return key_presses(sys.stdin.fileno(), self._press, on_end=self._quit)

    def _press(self, key: str) -> None:
        self._state.press(key)
        while self._state.requests:
            self._operations.begin(self._state.requests.pop(0))
        self._on_change()

    def _on_change(self) -> None:
        """Draw at once."""
        self._changed = True
        self._pressed.set()

    def _quit(self) -> None:
        self._state.quit = True
        self._pressed.set()

    async def _follow_status(self) -> None:
        async for status in statuses(self._source, self._pin):
            self._state.plan = self._source.plan()
            self._state.set_status(status, monotonic())
            self._changed = True

    async def _follow_logs(self) -> None:
        async for line in log_lines(self._source, LOG_TAIL, self._pin):
            self._state.add_log(line)
            self._changed = True

    def _pin(self, trouble: PdctlError) -> None:
        self._state.notes.say(f"trouble {type(trouble).__name__}", "error", str(trouble))
        self._changed = True

    async def _draw(self, live: Live) -> None:
        """Draw what changed, at a bounded rate; a key's effect at once."""
        state = self._state
        while not state.quit:
            size = self._console.size
            if self._changed or size != state.size:
                self._changed, state.size = False, size
                screen = render(state)
                state.log_rows = screen.log_rows
                live.update(screen.content, refresh=True)
            self._pressed.clear()
            await self._wait_for_key()

    async def _wait_for_key(self) -> None:
        try:
            async with asyncio.timeout(FRAME_INTERVAL_S):
                await self._pressed.wait()
        except TimeoutError:
            return


def _in_background() -> bool:
    """Return whether another job has the terminal: taking it over would stop this process."""
    if not sys.stdin.isatty():
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp()
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        return False  # not our controlling terminal: it has no job control over us
