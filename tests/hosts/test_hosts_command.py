"""Running a program to its end."""

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from pdctl.hosts.command import Feed, run_command


async def test_output_errors_and_code() -> None:
    done = await run_command(["sh", "-c", "cat; echo bad >&2; exit 3"], timeout_s=30, feed=Feed(b"in"))
    assert done == (3, "in", "bad")


async def test_a_file_can_be_its_input(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"x" * 3_000_000)
    done = await run_command(["wc", "-c"], timeout_s=30, feed=Feed(tmp_path / "content"))
    assert done.output.strip() == "3000000"


async def test_lines_are_passed_on_as_they_come() -> None:
    lines: list[str] = []
    code = "import sys\nfor n in range(3): print(n, flush=True)\nsys.exit(input() != 'go')"
    feed = Feed(b"go\n", lines.append)
    done = await run_command([sys.executable, "-c", code], timeout_s=30, feed=feed)
    assert (done.code, lines) == (0, ["0", "1", "2"])


async def test_it_does_not_outlive_its_time() -> None:
    lines: list[str] = []
    with pytest.raises(TimeoutError):
        await run_command(["sh", "-c", "echo $$; exec sleep 100"], timeout_s=0.5, feed=Feed(on_line=lines.append))
    assert not psutil.pid_exists(int(lines[0]))


async def test_it_does_not_outlive_its_caller() -> None:
    lines: list[str] = []
    told = asyncio.Event()

    def on_line(line: str) -> None:
        lines.append(line)
        told.set()

    command = ["sh", "-c", "echo $$; exec sleep 100"]
    task = asyncio.create_task(run_command(command, timeout_s=100, feed=Feed(on_line=on_line)))
    await asyncio.wait_for(told.wait(), 30)
    task.cancel()
    await asyncio.wait({task})
    assert not psutil.pid_exists(int(lines[0]))


async def test_what_it_has_started_ends_with_it() -> None:
    """As the ssh to a jump host, which has the same output."""
    lines: list[str] = []
    command = ["sh", "-c", "sleep 100 & echo $!; exec sleep 100"]
    with pytest.raises(TimeoutError):
        await run_command(command, timeout_s=0.5, feed=Feed(on_line=lines.append))
    assert not psutil.pid_exists(int(lines[0])) or psutil.Process(int(lines[0])).status() == psutil.STATUS_ZOMBIE


async def test_ctrl_c_in_our_terminal_is_not_for_it() -> None:
    done = await run_command([sys.executable, "-c", "import os; print(os.getpgrp())"], timeout_s=30)
    assert int(done.output) != os.getpgrp()
