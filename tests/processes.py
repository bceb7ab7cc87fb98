"""Processes that do not outlive the test that started them."""

import subprocess
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType

import psutil


class Spawned(subprocess.Popen[str]):
    """Is killed when its block fails: waiting for its end would hide why."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, traceback)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill them; one may end another."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
