"""One process that the agent started: its pipes, its log, what is known of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Set

from pdctl.agent.logs import Line, LineSplitter, RotatingLog, log_path, now
from pdctl.agent.notices import Notices
from pdctl.agent.procfs import Identity, read_stat
from pdctl.agent.spawn import child_environment, spawn

LAST_LINES = 20  # told with the exit, even when the log could not be written
SEEN_S = 60.0  # for how long a process that has left a tree is remembered
_READ_BYTES = 64 * 1024


class Command(NamedTuple):
    """What is run as a process, and how long it may take to end."""

    argv: List[str]
    env: Dict[str, str]
    cwd: Optional[str]
    grace_s: float


class Child:
    """One life of a process, and everything below it. Owned by the supervisor, in the event loop's thread.

    ``restarts``: how many lives it had before. ``last_end``: how the one before this ended.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        on_lines: Callable[[str, List[Line]], None],
        restarts: int = 0,
        last_end: Optional[str] = None,
    ) -> None:
        self.name = name
        self.pid = 0
        self.command = Command([], {}, None, 0.0)
        self.stopping = False
        self.exit_code: Optional[int] = None  # negative: the signal that ended it
        self.exited = asyncio.Event()
        self.restarts = restarts
        self.last_end = last_end  # once this one has ended: how it did
        self.state_after = "exited"  # what its end has led to
        self.restart_at: Optional[float] = None  # on time.monotonic's clock
        self.note: Optional[str] = None  # a warning of those who look after it
        self.tree: Set[Identity] = set()  # what was seen of it and below it
        self.cpu_percent = 0.0
        self.memory_bytes = 0
        self._seen: Dict[Identity, float] = {}  # when each was in the tree last
        self._started = self._ended = 0.0
        self._served_since: Optional[float] = None
        self._log = RotatingLog(log_path(folder, name))
        self._last: Deque[str] = deque(maxlen=LAST_LINES)
        self._splitter = LineSplitter()
        self._notices = Notices()
        self._on_lines = on_lines
        self._on_change: Callable[[Child], None] = lambda child: None
        self._fds: Dict[int, Callable[[bytes], None]] = {}

    def start(self, run_id: str, command: Command, on_change: Callable[[Child], None]) -> None:
        """Start it; ``on_change`` is called at each notice."""
        spawned = spawn(command.argv, child_environment(run_id, self.name, command.env), command.cwd)
        self.pid, self._started, self.command = spawned.pid, time.monotonic(), command
        self._on_change = on_change
        stat = read_stat(spawned.pid)
        self.saw({stat.identity} if stat is not None else set())
        self._fds = {spawned.output: self._take_output, spawned.notices: self._take_notices}
        for fd in self._fds:
            asyncio.get_running_loop().add_reader(fd, self._readable, fd)

    def signal_group(self, number: int) -> None:
        """Signal its process group. Only before it was reaped: until then the pid is its own."""
        if self.exit_code is not None:
            return
        with suppress(PermissionError):  # all of it runs as another user: what still lives is told after the grace
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # still in the shim, without a group
                os.kill(self.pid, number)

    def serves(self) -> None:
        """It was seen to be ready by others than itself."""
        self._notices.ready = True
        self._note_service()

    def saw(self, tree: Set[Identity]) -> None:
        """Its processes as they were just found."""
        now = time.monotonic()
        self.tree = tree
        self._seen.update(dict.fromkeys(tree, now))
        self._seen = {identity: at for identity, at in self._seen.items() if now - at < SEEN_S}

    def say(self, text: str) -> None:
        """Write a line to its log that is not its own."""
        self._write([Line(round(now(), 6), f"pdctl: {text}")])

    async def ends_within(self, timeout_s: Optional[float]) -> bool:
        """Wait for its end; without a limit, for ever."""
        try:
            await asyncio.wait_for(self.exited.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    def ended(self, exit_code: int) -> None:
        """It was reaped: take what it wrote last."""
        for fd in list(self._fds):
            self._readable(fd)
        self._write(self._splitter.end())
        self.exit_code, self._ended = exit_code, time.monotonic()
        self.last_end = describe_exit(exit_code)
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
        """``starting``, ``ready``, ``stopping``, ``exited``, ``restarting`` or ``failed``."""
        if self.exit_code is not None:
            return self.state_after
        if self.stopping:
            return "stopping"
        return "ready" if self._notices.ready else "starting"

    @property
    def ports(self) -> Dict[str, int]:
        """Those that it has reported, by purpose."""
        return self._notices.ports

    @property
    def seen(self) -> Set[Identity]:
        """What was in its tree in the last minute."""
        return set(self._seen)

    @property
    def uptime_s(self) -> float:
        """How long it has lived."""
        return (self._ended or time.monotonic()) - self._started

    @property
    def served_s(self) -> float:
        """How long it was ready."""
        return 0.0 if self._served_since is None else (self._ended or time.monotonic()) - self._served_since

    def snapshot(self) -> Dict[str, Any]:
        """What ``list`` answers for it and what subscribers get when it changes."""
        return {
            "name": self.name,
            "pid": self.pid,
            "state": self.state,
            "exit_code": self.exit_code,
            "stopped": self.stopping,
            "restarts": self.restarts,
            "restart_in_s": self._restart_in_s(),
            "last_end": self.last_end,
            "uptime_s": round(self.uptime_s, 3),
            "cpu_percent": round(self.cpu_percent, 1),
            "memory_bytes": self.memory_bytes,
            "progress": self._notices.progress,
            "ports": self._notices.ports,
            "warning": self.note or self._log.warning or self._notices.warning,
            "last_lines": list(self._last) if self.exit_code is not None else [],
        }

    def _restart_in_s(self) -> Optional[float]:
        if self.state != "restarting" or self.restart_at is None:
            return None
        return round(max(0.0, self.restart_at - time.monotonic()), 3)

    def _note_service(self) -> None:
        if self._notices.ready and self._served_since is None:
            self._served_since = time.monotonic()

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
            self._note_service()
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


def describe_exit(exit_code: int) -> str:
    """How a process ended: "was killed by SIGKILL"."""
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"
