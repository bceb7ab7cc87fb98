"""Follows a running benchmark in the terminal."""

import asyncio
import statistics
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pdctl.bench.records import Tally

LIVE_INTERVAL_S = 0.5
PLAIN_INTERVAL_S = 5.0


async def show_progress(tally: Tally, planned: int | None, console: Console, *, live: bool) -> None:
    """Show ``tally`` until cancelled: one line that changes or, where not ``live``, a line now and then."""
    rate = _TokenRate()
    if not live:
        while True:
            await asyncio.sleep(PLAIN_INTERVAL_S)
            try:
                console.print(progress_line(tally, planned, rate.of(tally)), soft_wrap=True)
            except SystemExit:  # rich's answer where nobody reads any more; it would end the benchmark
                return
    with Live(console=console, auto_refresh=False, transient=True) as display:
        while True:
            display.update(progress_line(tally, planned, rate.of(tally)), refresh=True)
            await asyncio.sleep(LIVE_INTERVAL_S)


def progress_line(tally: Tally, planned: int | None, tokens_per_s: float) -> Text:
    """Return what was sent and answered so far, in one line."""
    of = "" if planned is None else f"/{planned}"
    line = Text(f"sent {tally.sent}{of}  done {tally.done}  ", no_wrap=True, overflow="ellipsis")
    line.append(f"errors {tally.failed}", "bold red" if tally.failed else "")
    line.append(f"  {tokens_per_s:.1f} tok/s")
    if tally.ttfts:
        line.append(f"  TTFT p50 {1000 * statistics.median(tally.ttfts):.0f} ms")
    return line


class _TokenRate:
    """Output tokens a second since it was asked last."""

    def __init__(self) -> None:
        self._time, self._tokens = monotonic(), 0

    def of(self, tally: Tally) -> float:
        now = monotonic()
        elapsed, new = now - self._time, tally.output_tokens - self._tokens
        self._time, self._tokens = now, tally.output_tokens
        return max(0, new) / elapsed if elapsed > 0 else 0.0
