import asyncio
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import pytest

from pdctl.dashboard.run import run_dashboard
from tests.dashboard.deployment_samples import FakeSource

ROOT = Path(__file__).parents[2]
CHILD = [sys.executable, "-m", "tests.dashboard.dashboard_child"]
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")

pytestmark = pytest.mark.timeout(60)


class PtyChild:
    """A program on a terminal of its own."""

    def __init__(self, argv, *, rows=24, columns=80):
        self.output = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            # A size in the environment, such as readline sets it, would come before the terminal's own.
            own = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")}
            os.execvpe(argv[0], argv, own | {"TERM": "xterm-256color"})
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.fd)

    def resize(self, rows, columns):
        self.rows, self.columns = rows, columns
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys):
        os.write(self.fd, keys.encode())

    def frame(self):
        """The rows of the last whole screen that was drawn at the present size."""
        for drawn in reversed(self.output.split("\x1b[H")):
            rows = ESCAPES.sub("", drawn).split("\r\n")
            if [len(row) for row in rows] == [self.columns] * self.rows:
                return [row.rstrip() for row in rows]
        return []

    def until(self, condition, timeout=20.0):
        """Read what the program writes until ``condition`` holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"not within {timeout} s; the last screen:\n" + "\n".join(self.frame())
            assert self._read(left), f"the program ended; it wrote:\n{self.output}"

    def to_end(self):
        """Read until the program ends; return whether its terminal is as it was before."""
        while self._read(20.0):
            pass
        attributes = termios.tcgetattr(self.fd)
        os.waitpid(self.pid, 0)
        self.pid = 0
        return attributes == self.before

    def _read(self, timeout):
        ready, _, _ = select.select([self.fd], [], [], timeout)
        assert ready, "the program wrote nothing"
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.output += data.decode(errors="replace")
        return bool(data)

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def outcome(tmp_path):
    return tmp_path / "outcome"


@pytest.fixture
def child(outcome):
    program = PtyChild([*CHILD, str(outcome)])
    yield program
    program.close()


def logs_of(child):
    return {row.split(" │ ")[0].strip() for row in child.frame() if "│ tick" in row}


def screen_was_left(child):
    return child.output.rstrip().endswith("\x1b[?1049l") and child.output.rfind("\x1b[?25h") > child.output.rfind("│")


ALL = {"router", "prefill-0", "decode-0"}


def test_screen_shows_processes_and_follows_logs_and_q_ends_it(child, outcome):
    child.until(lambda: logs_of(child) == ALL)
    frame = child.frame()
    assert frame[0].startswith("chat  ready  http://127.0.0.1:8000")
    assert frame[3].split()[:2] == ["2", "prefill-0"]
    assert len(frame) == 24
    assert frame[-1].endswith("q end the test")
    child.until(lambda: any("tick 10 " in row for row in child.frame()))
    child.press("q")
    assert child.to_end()
    assert outcome.read_text() == "returned"
    assert screen_was_left(child)
    assert "still being read" not in child.output


def test_keys_filter_the_logs(child):
    child.until(lambda: logs_of(child) == ALL)
    child.press("2")
    child.until(lambda: logs_of(child) == {"router", "decode-0"})
    child.press("a")
    child.until(lambda: logs_of(child) == ALL)
    child.press("/OF dec\r")
    child.until(lambda: logs_of(child) == {"decode-0"})
    child.press("p")
    child.until(lambda: any("paused, " in row and "paused, 0 new" not in row for row in child.frame()))
    shown = [row for row in child.frame() if "│ tick" in row]
    child.until(lambda: any(re.search(r"paused, \d\d+ new", row) for row in child.frame()))
    assert [row for row in child.frame() if "│ tick" in row] == shown


def test_resizing_is_followed_even_when_nothing_else_changes(outcome):
    child = PtyChild([*CHILD, str(outcome), "quiet"])
    try:
        for rows, columns in ((24, 80), (40, 130), (6, 30), (2, 10), (24, 80)):
            child.resize(rows, columns)
            child.until(child.frame)
            assert child.frame()[0].startswith("chat")
    finally:
        child.close()


def test_ctrl_c_sets_the_terminal_back(child, outcome):
    child.until(lambda: logs_of(child) == ALL)
    child.press("\x03")
    assert child.to_end()
    assert outcome.read_text() == "interrupted"
    assert screen_was_left(child)


def test_a_failing_source_is_raised_once_the_terminal_is_back(child, outcome):
    child.until(lambda: logs_of(child) == ALL)
    os.kill(child.pid, signal.SIGUSR1)
    assert child.to_end()
    assert outcome.read_text() == "raised the agent is gone"
    assert screen_was_left(child)


def test_a_terminal_that_hangs_up_ends_the_view(outcome):
    child = PtyChild([*CHILD, str(outcome)])
    child.until(lambda: logs_of(child) == ALL)
    os.close(child.fd)
    os.waitpid(child.pid, 0)
    assert outcome.read_text() == "returned"


def test_a_background_job_writes_lines_and_leaves_the_terminal_alone(outcome):
    child = PtyChild(["bash", "-c", f"set -m; {' '.join(CHILD)} {outcome} & wait"])
    try:
        child.until(lambda: "decode-0  | tick 3 of decode-0" in ESCAPES.sub("", child.output))
        assert "\x1b[?1049h" not in child.output
        assert termios.tcgetattr(child.fd) == child.before
    finally:
        jobs = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        for job in jobs:
            os.kill(int(job), signal.SIGKILL)
        child.to_end()
        child.close()


async def test_cancelling_stops_reading_the_source(capsys):
    from rich.console import Console

    source = FakeSource()
    task = asyncio.create_task(run_dashboard(source, Console()))
    async with asyncio.timeout(10):
        await source.asked.wait()
        while not source.reading:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.reading == 0
