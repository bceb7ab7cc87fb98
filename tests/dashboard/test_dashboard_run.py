import asyncio
import os
import re
import signal
import sys
import termios
from pathlib import Path

import pytest

from pdctl.dashboard.run import run_dashboard
from tests.dashboard.deployment_samples import FakeSource
from tests.dashboard.pty_child import ESCAPES, PtyChild

CHILD = [sys.executable, "-m", "tests.dashboard.dashboard_child"]

pytestmark = pytest.mark.timeout(60)


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


def latest_tick(child):
    return max((int(row.split(" │ tick ")[1].split()[0]) for row in child.frame() if " │ tick " in row), default=0)


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
    assert any(row.startswith("tok/s") for row in frame)
    child.until(lambda: latest_tick(child) > 10)
    child.press("q")
    assert child.to_end()
    assert outcome.read_text() == "returned"
    assert screen_was_left(child)
    assert "still being read" not in child.output


def test_keys_filter_the_logs(child):
    child.until(lambda: logs_of(child) == ALL)
    child.press("2h")
    child.until(lambda: logs_of(child) == {"router", "decode-0"})
    child.press("a")
    child.until(lambda: logs_of(child) == ALL)
    child.press("fOF dec\r")
    child.until(lambda: logs_of(child) == {"decode-0"})
    child.press("p")
    child.until(lambda: any("paused, " in row and " 0 new" not in row for row in child.frame()))
    shown = [row for row in child.frame() if "│ tick" in row]
    child.until(lambda: any(re.search(r"paused, .* \d\d+ new", row) for row in child.frame()))
    assert [row for row in child.frame() if "│ tick" in row] == shown


def test_logs_are_searched_and_scrolled_while_they_come(child):
    child.until(lambda: latest_tick(child) > 20)
    child.press("/tick 7 of router\r")
    child.until(lambda: any(row.startswith("router    > tick 7 of router") for row in child.frame()))
    child.press("\x1b[6~")  # page down
    child.until(lambda: child.frame() and not any("│ tick 7 of router" in row for row in child.frame()))
    assert "scrolled, " in "".join(child.frame())
    child.press("\x1bOF")  # End
    child.until(lambda: latest_tick(child) > 25)
    assert "scrolled, " not in "".join(child.frame())


def test_a_restart_is_asked_for_in_the_last_line_and_its_outcome_pinned(child):
    child.until(lambda: logs_of(child) == ALL)
    child.press("\x1b[C\x1b[C\x1b[C" + "r")
    child.until(lambda: child.frame()[-1].startswith("restart decode-0? it is not drained   y: yes"))
    child.press("y")
    child.until(lambda: child.frame()[1].startswith("0s ago: decode-0 was restarted"))
    child.press("x")
    child.until(lambda: child.frame()[1].split()[:1] == ["PROCESS"])


def test_the_plan_is_read_over_the_whole_screen(child, outcome):
    child.until(lambda: logs_of(child) == ALL)
    child.press("o")
    child.until(lambda: child.frame()[0].startswith("── plan of chat ─"))
    child.press("q")
    child.until(lambda: logs_of(child) == ALL)
    child.press("q")
    assert child.to_end()
    assert outcome.read_text() == "returned"


def test_without_colour_the_screen_is_drawn_all_the_same(outcome):
    child = PtyChild([*CHILD, str(outcome)], NO_COLOR="1")
    try:
        child.until(lambda: logs_of(child) == ALL)
        assert not re.search(r"\x1b\[[0-9;]*[34][0-9]", child.output)
    finally:
        child.close()


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": ""}, {"PYTHONIOENCODING": "latin-1"}])
def test_where_a_screen_cannot_be_drawn_lines_are_written(outcome, variables):
    child = PtyChild([*CHILD, str(outcome)], **variables)
    try:
        child.until(lambda: "decode-0  | tick 3 of decode-0" in ESCAPES.sub("", child.output))
        assert "\x1b[?1049h" not in child.output
    finally:
        child.close()


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
