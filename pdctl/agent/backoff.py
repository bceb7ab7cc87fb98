"""When a process that has ended is started again, and when it is left alone: plain values, no clock."""

from __future__ import annotations

from typing import NamedTuple, Optional

_MAX_DOUBLINGS = 60  # far beyond any cap, and well within a float


class Restart(NamedTuple):
    """What is wanted for a process that ends; the keys of a topology's ``restart``."""

    policy: str = "on-failure"  # or always, never
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    stable_s: float = 60.0
    max_restarts: int = 5
    probe_interval_s: float = 5.0
    probe_failures: int = 3
    probe_timeout_s: float = 5.0

    def covers(self, exit_code: int) -> bool:
        """Whether a process that has ended so is to be started again."""
        return self.policy == "always" or (self.policy == "on-failure" and exit_code != 0)


class Backoff:
    """Exponential back-off with a cap. It begins anew after a life that was stable."""

    def __init__(self, restart: Restart) -> None:
        self._restart = restart
        self._failures = 0  # in a row

    def after(self, served_s: float) -> Optional[float]:
        """How long to wait after a life that served for so many seconds; None: it keeps failing, let it be."""
        if served_s >= self._restart.stable_s:
            self._failures = 0
        self._failures += 1
        if self._failures > self._restart.max_restarts:
            return None
        doublings = min(self._failures - 1, _MAX_DOUBLINGS)
        return min(self._restart.max_backoff_s, self._restart.backoff_s * 2.0**doublings)
