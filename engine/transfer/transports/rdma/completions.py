"""Completions, waited for by a file descriptor: pyverbs' own waits hold the interpreter's lock."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

from pyverbs.cq import CQ, WC, CompChannel
from pyverbs.device import Context
from pyverbs.pyverbs_error import PyverbsError

_BATCH = 64
_OPEN_FDS = Path("/proc/self/fd")
_making_channel = threading.Lock()


class CompletionQueue:
    """A completion queue and the channel over which the kernel tells of what is in it."""

    def __init__(self, context: Context, depth: int) -> None:
        self._channel, self._fd = _make_channel(context)
        os.set_blocking(self._fd, False)
        self.cq = CQ(context, depth, None, self._channel, 0)
        self.cq.req_notify()
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self, on_completions: Callable[[list[WC]], None], on_error: Callable[[str], None]) -> None:
        """Call with each batch of completions, in the event loop; with the reason when no more can come."""
        self._on_completions, self._on_error = on_completions, on_error
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._ready)

    def close(self) -> None:
        """Close both. No queue pair uses them any more."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None
        self.cq.close()
        self._channel.close()

    def _ready(self) -> None:
        try:
            self._channel.get_cq_event(self.cq)
            self.cq.ack_events(1)
            self.cq.req_notify()  # before polling: what completes from here on makes an event
            while self._loop is not None:
                count, completions = self.cq.poll(_BATCH)
                if count:
                    self._on_completions(completions)
                if count < _BATCH:
                    return
        except PyverbsError as error:
            self._on_error(str(error))


def _make_channel(context: Context) -> tuple[CompChannel, int]:
    """A completion channel and its descriptor, which pyverbs does not tell: it is the one that has come."""
    with _making_channel:
        before = _event_fds()
        channel = CompChannel(context)
        (fd,) = _event_fds() - before
    return channel, fd


def _event_fds() -> set[int]:
    found = set()
    for entry in _OPEN_FDS.iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # closed since it was listed
            continue
        if "infinibandevent" in target:
            found.add(int(entry.name))
    return found
