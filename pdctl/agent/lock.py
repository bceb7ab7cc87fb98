"""Locks on files: that of an agent's folder is held by guardian and agent while either lives, and by a sweep."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Optional

_POLL_S = 0.02  # flock with a timeout does not exist


def take_lock(folder: Path, timeout_s: float, name: str = "agent.lock") -> Optional[int]:
    """The locked file's descriptor, which no process inherits; None when another keeps the lock. Blocks."""
    fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                return None
            time.sleep(_POLL_S)
