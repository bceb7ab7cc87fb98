"""Ending processes, among them some that may not be signalled."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdctl.agent import kill as kill_module
from pdctl.agent.child import Child
from pdctl.agent.kill import kill_until_gone
from pdctl.agent.procfs import Stat, read_stats


@pytest.fixture
def two() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_one_of_another_user_is_left_and_the_rest_ended(
    two: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below `sudo`, which nobody but root may signal."""
    foreign, own = two
    really = os.kill

    def kill(pid: int, number: int) -> None:
        if pid == foreign.pid:
            raise PermissionError
        really(pid, number)

    def find() -> list[Stat]:
        return list(read_stats([foreign.pid, own.pid]).values())

    monkeypatch.setattr(kill_module.os, "kill", kill)
    left = kill_until_gone(find, 0.5)
    monkeypatch.undo()
    assert [stat.pid for stat in left] == [foreign.pid]
    assert own.wait(20) != 0


def test_asking_one_of_another_user_to_end_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What then still lives is found after the grace."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    child = Child("p", tmp_path, lambda name, lines: None)
    monkeypatch.setattr(os, "killpg", refuse)
    child.signal_group(signal.SIGTERM)
