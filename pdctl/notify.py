"""What a process of ours tells its agent while it starts: JSON lines on a pipe that it inherits.

The agent passes the pipe's file descriptor in ``PDCTL_NOTIFY_FD``. Started by hand, without it, nothing is sent.

Events, one JSON object a line::

    {"event": "progress", "step": "loading weights", "done": 120, "total": 272}
    {"event": "listening", "ports": {"api": 31000, "metrics": 31001, "pd-comm": 31002}}
    {"event": "ready"}
"""

import json
import os

NOTIFY_FD = "PDCTL_NOTIFY_FD"


class Notifier:
    """Writes this process's start-up events to its agent. The agent's death is not this process's error."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd if fd is not None else _inherited_fd()

    def progress(self, step: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` units of ``step`` are finished."""
        self._send({"event": "progress", "step": step, "done": done, "total": total})

    def listening(self, ports: dict[str, int]) -> None:
        """Report the ports that this process has bound, by purpose (``api``, ``metrics``, ``pd-comm``)."""
        self._send({"event": "listening", "ports": ports})

    def ready(self) -> None:
        """Report that this process serves."""
        self._send({"event": "ready"})

    def _send(self, event: dict[str, object]) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, json.dumps(event).encode() + b"\n")
        except BrokenPipeError:
            self._fd = None


def _inherited_fd() -> int | None:
    value = os.environ.get(NOTIFY_FD)
    if value is None:
        return None
    fd = int(value)
    os.set_inheritable(fd, False)
    return fd
