"""Passing on log lines and changes to one client, which may be slower than they come."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Awaitable, Callable, Deque, Dict, List, Optional, Set

from pdctl.agent.logs import Line
from pdctl.agent.protocol import Message

PENDING_BYTES = 2 * 1024 * 1024  # of log lines, for one subscriber
LINES_APART_S = 0.1  # between two messages of log lines: many small ones cost their reader more than the lines do
_LINE_OVERHEAD = 64

Send = Callable[[Message], Awaitable[None]]


class Subscriber:
    """Holds what a client has yet to get: a bounded number of log lines, and of each process only its latest state."""

    def __init__(
        self, send: Send, logs: bool, processes: Optional[Set[str]], pending_bytes: int = PENDING_BYTES
    ) -> None:
        self._send = send
        self._logs = logs
        self._processes = processes  # None: all
        self._limit = pending_bytes
        self._lines: Deque[List[Any]] = deque()
        self._bytes = 0
        self._lost = 0
        self._changed: Dict[str, Message] = {}
        self._wake = asyncio.Event()

    def changed(self, snapshot: Message) -> None:
        """A process changed; an older state that is still pending is replaced."""
        if self._wants(snapshot["name"]):
            self._changed[snapshot["name"]] = snapshot
            self._wake.set()

    def lines(self, process: str, lines: List[Line]) -> None:
        """A process wrote; what does not fit any more is counted as lost."""
        if not self._logs or not self._wants(process):
            return
        for line in lines:
            size = len(line.text) + _LINE_OVERHEAD
            if self._bytes + size > self._limit:
                self._lost += 1
                continue
            self._lines.append([process, line.time, line.text])
            self._bytes += size
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled or the client is gone (ConnectionError)."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, {}
            for snapshot in changed.values():
                await self._send({"event": "process", "process": snapshot})
            if self._lines or self._lost:
                await self._send(self._take_lines())
                await asyncio.sleep(LINES_APART_S)

    def _take_lines(self) -> Message:
        event = {"event": "logs", "lines": list(self._lines), "lost": self._lost}
        self._lines.clear()
        self._bytes = self._lost = 0
        return event

    def _wants(self, process: str) -> bool:
        return self._processes is None or process in self._processes
