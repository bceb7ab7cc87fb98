"""What a process has told about its start-up (see pdctl/notify.py for the events)."""

from __future__ import annotations

import json
from typing import Any, Dict, Optional

_MAX_PENDING_BYTES = 64 * 1024


class Notices:
    """The latest of each kind: how far it is, which ports it has bound, whether it serves."""

    def __init__(self) -> None:
        self.progress: Optional[Dict[str, Any]] = None
        self.ports: Dict[str, int] = {}
        self.ready = False
        self.warning: Optional[str] = None
        self._pending = b""

    def feed(self, data: bytes) -> bool:
        """Take what was read from the pipe; whether anything is new."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > _MAX_PENDING_BYTES:
            lines, self._pending = [*lines, self._pending], b""
        for line in lines:
            self._take(line)
        return bool(lines)

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind = event["event"]
            if kind == "progress":
                self.progress = {"step": str(event["step"]), "done": int(event["done"]), "total": int(event["total"])}
            elif kind == "listening":
                self.ports.update({str(name): int(port) for name, port in event["ports"].items()})
            elif kind == "ready":
                self.ready = True
        except (ValueError, KeyError, TypeError, AttributeError):
            self.warning = f"it sent a damaged notice: {line[:80]!r}"
