"""One process that the agent started: its pipes, its log, what is known of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Deque, Dict, List, Optional, Set

from pdctl.agent.logs import Line, LineSplitter, RotatingLog, log_path
from pdctl.agent.notices import Notices
from pdctl.agent.procfs import Identity, read_stat
from pdctl.agent.spawn import child_environment, spawn

LAST_LINES = 20  # told with the exit, even when the log could not be written
_READ_BYTES = 64 * 1024


class Child:
    """A process and everything below it. Owned by the supervisor, in the event loop's thread."""

    def __init__(self, name: str, folder: Path, on_lines: Callable[[str, List[Line]], None]) -> None:
        self.name = name
        self.pid = 0
        self.grace_s = 0.0
        self.stopping = False
        self.exit_code: Optional[int] = None  # negative: the signal that ended it
        self.exited = asyncio.Event()
        self.tree: Set[Identity] = set()  # what was seen of it and below it
        self.cpu_percent = 0.0
        self.memory_bytes = 0
        self._started = self._ended = 0.0
        self._log = RotatingLog(log_path(folder, name))
        self._last: Deque[str] = deque(maxlen=LAST_LINES)
        self._splitter = LineSplitter()
        self._notices = Notices()
        self._on_lines = on_lines
        self._on_change: Callable[[Child], None] = lambda child: None
        self._fds: Dict[int, Callable[[bytes], None]] = {}

    def start(
        self, run_id: str, argv: List[str], env: Dict[str, str], cwd: Optional[str], on_change: Callable[[Child], None]
    ) -> None:
        """Start it; ``on_change`` is called at each notice."""
        spawned = spawn(argv, child_environment(run_id, self.name, env), cwd)
        self.pid, self._started = spawned.pid, time.time()
        self._on_change = on_change
        stat = read_stat(spawned.pid)
        if stat is not None:
            self.tree.add(stat.identity)
        self._fds = {spawned.output: self._take_output, spawned.notices: self._take_notices}
        for fd in self._fds:
            asyncio.get_running_loop().add_reader(fd, self._readable, fd)

    def terminate(self) -> None:
        """SIGTERM to its process group. Only before it was reaped: until then the pid is its own."""
        if self.exit_code is not None:
            return
        with suppress(PermissionError):  # all of it runs as another user: what still lives is told after the grace
            try:
                os.killpg(self.pid, signal.SIGTERM)
            except ProcessLookupError:  # still in the shim, without a group
                os.kill(self.pid, signal.SIGTERM)

    def ended(self, exit_code: int) -> None:
        """It was reaped: take what it wrote last."""
        for fd in list(self._fds):
            self._readable(fd)
        self._write(self._splitter.end())
        self.exit_code, self._ended = exit_code, time.time()
        self.cpu_percent, self.memory_bytes = 0.0, 0
        self.exited.set()

    def close(self) -> None:
        """Stop reading and writing: nothing of it lives."""
        for fd in list(self._fds):
            self._readable(fd)
        for fd in list(self._fds):
            self._close_fd(fd)
        self._write(self._splitter.end())
        self._log.close()

    @property
    def state(self) -> str:
        """``starting``, ``ready``, ``stopping`` or ``exited``."""
        if self.exit_code is not None:
            return "exited"
        if self.stopping:
            return "stopping"
        return "ready" if self._notices.ready else "starting"

    def snapshot(self) -> Dict[str, Any]:
        """What ``list`` answers for it and what subscribers get when it changes."""
        return {
            "name": self.name,
            "pid": self.pid,
            "state": self.state,
            "exit_code": self.exit_code,
            "uptime_s": round((self._ended or time.time()) - self._started, 3),
            "cpu_percent": round(self.cpu_percent, 1),
            "memory_bytes": self.memory_bytes,
            "progress": self._notices.progress,
            "ports": self._notices.ports,
            "warning": self._log.warning or self._notices.warning,
            "last_lines": list(self._last) if self.exit_code is not None else [],
        }

    def _readable(self, fd: int) -> None:
        """Read once: a process that writes without pause must not keep the loop from others."""
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._fds[fd](data)
        else:
            self._close_fd(fd)

    def _close_fd(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        del self._fds[fd]
        os.close(fd)

    def _take_output(self, data: bytes) -> None:
        self._write(self._splitter.feed(data))

    def _take_notices(self, data: bytes) -> None:
        if self._notices.feed(data):
            self._on_change(self)

    def _write(self, lines: List[Line]) -> None:
        if not lines:
            return
        warning = self._log.warning
        self._log.write(lines)
        self._last.extend(line.text for line in lines)
        self._on_lines(self.name, lines)
        if self._log.warning != warning:
            self._on_change(self)
