"""A circuit breaker: an engine that keeps failing requests gets none for a while, then one to try."""

from enum import IntEnum


class State(IntEnum):
    """How much an engine is trusted."""

    CLOSED = 0
    HALF_OPEN = 1  # the next request is a trial
    OPEN = 2


class Breaker:
    """One engine's. Whoever changes `state` rebuilds the lists of engines that get requests."""

    __slots__ = ("failures", "on_trial", "opened", "state")

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.failures = 0  # of requests, consecutively
        self.on_trial = False  # the trial request is under way
        self.opened = 0.0

    @property
    def admits(self) -> bool:
        """Whether the engine may get a request."""
        return self.state is not State.OPEN and not self.on_trial

    def failed(self, now: float, threshold: int) -> bool:
        """Count a failed request; True if the breaker opens."""
        self.failures += 1
        if self.state is State.OPEN or (self.state is State.CLOSED and self.failures < threshold):
            return False
        self.state, self.opened, self.on_trial = State.OPEN, now, False
        return True

    def reset(self) -> None:
        """Trust the engine again."""
        self.state, self.failures, self.on_trial = State.CLOSED, 0, False

    def cooled_down(self, now: float, seconds: float) -> bool:
        """Turn half-open when it has been open for long enough; True if it does so now."""
        if self.state is not State.OPEN or now - self.opened < seconds:
            return False
        self.state = State.HALF_OPEN
        return True
