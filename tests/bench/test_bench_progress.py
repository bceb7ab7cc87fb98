import asyncio
import io

import pytest
from rich.console import Console

from pdctl.bench import progress
from pdctl.bench.records import Tally


def test_line_shows_counts_rate_and_median_ttft():
    tally = Tally(sent=12, done=10, failed=2)
    assert progress.progress_line(tally, None, 0.0).plain == "sent 12  done 10  errors 2  0.0 tok/s"
    tally.ttfts.extend([0.1, 0.2, 0.9])
    line = progress.progress_line(tally, 40, 87.94).plain
    assert line == "sent 12/40  done 10  errors 2  87.9 tok/s  TTFT p50 200 ms"


@pytest.mark.parametrize("live", [False, True])
async def test_follows_the_tally_until_cancelled(monkeypatch, live):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.01)
    monkeypatch.setattr(progress, "LIVE_INTERVAL_S", 0.01)
    written, tally = _Written(), Tally(sent=1)
    console = Console(file=written, force_terminal=live, width=100)
    task = asyncio.create_task(progress.show_progress(tally, None, console, live=live))
    await written.has("sent 1 ")
    tally.sent = 2
    await written.has("sent 2 ")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not live or written.getvalue().endswith(("\x1b[?25h", "\x1b[2K"))  # cursor back, line gone


class _Written(io.StringIO):
    """Console output that can be waited for."""

    async def has(self, text):
        async with asyncio.timeout(10):
            while text not in self.getvalue():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_a_reader_that_has_left_ends_the_progress_and_not_the_benchmark(monkeypatch):
    class Unread:
        def print(self, *_, **__):
            raise SystemExit(1)  # as rich does when its pipe is broken

    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0)
    async with asyncio.timeout(10):
        await progress.show_progress(Tally(), 1, Unread(), live=False)
