"""Requests that wait for an engine: a bounded queue for each model, first come, first served."""

import asyncio
from collections import deque
from typing import Protocol

_LOOK = 0.005  # seconds between looks while requests wait: other workers' engines become free without a word


class Waiting(Protocol):
    """A request in a queue."""

    wait_until: float

    @property
    def streaming(self) -> bool:
        """Whether it is in the middle of its answer: it may wait for an engine to come up, not only for room."""

    def try_again(self) -> bool:
        """Ask for engines once more; False to go on waiting."""

    def waited_too_long(self) -> None:
        """Its time in the queue is over."""


class Admission:
    """All queues."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._queues: dict[str, deque[Waiting]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def depths(self) -> dict[str, int]:
        """How many requests wait for each model."""
        return {model: len(queue) for model, queue in self._queues.items()}

    def enqueue(self, model: str, request: Waiting) -> bool:
        """Let a request wait; False if the queue is full."""
        queue = self._queues.setdefault(model, deque())
        if len(queue) >= self.size:
            return False
        if request.streaming:
            queue.appendleft(request)
        else:
            queue.append(request)
        self.wake()
        return True

    def has_line(self, model: str) -> bool:
        """Whether requests for a model wait for room: others have to wait behind them."""
        queue = self._queues.get(model)
        return queue is not None and len(queue) > 0 and not queue[-1].streaming

    def leave(self, model: str, request: Waiting) -> None:
        """Take a request out whose client has left."""
        queue = self._queues.get(model)
        if queue is not None and request in queue:
            queue.remove(request)
            if not queue:
                del self._queues[model]

    def wake(self) -> None:
        """Look soon whether requests need to wait no longer."""
        if self._queues and self._timer is None:
            self._timer = self._loop.call_later(_LOOK, self._look)

    def hasten(self) -> None:
        """An engine may have room: see who can be served, without waiting for the next look."""
        if self._queues and self._soon is None:
            self._soon = self._loop.call_soon(self._serve)

    def close(self) -> None:
        """Look no more."""
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        try:
            for queue in tuple(self._queues.values()):
                for request in [r for r in queue if r.wait_until <= now]:
                    queue.remove(request)
                    request.waited_too_long()
            self._serve()
        finally:
            self.wake()  # whatever goes wrong with one request, the others are looked at again

    def _serve(self) -> None:
        self._soon = None
        for model, queue in tuple(self._queues.items()):
            _serve(queue)
            if not queue:
                self._queues.pop(model, None)


def _serve(queue: deque[Waiting]) -> None:
    """Serve a queue's requests in turn, up to the first that has no room; streams keep nobody waiting."""
    for request in tuple(queue):
        if request.try_again():
            queue.remove(request)
        elif not request.streaming:
            return
