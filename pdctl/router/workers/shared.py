"""Memory that all workers of a router share: what each has assigned to each engine, and what API keys have used.

Every cell has one writer. Rows are found by an engine's key; claiming one is done under a lock on the memory's file.
"""

import fcntl
import logging
import mmap
import os

from pdctl.router.access.api_keys import size_needed
from pdctl.router.engines.load import Load

log = logging.getLogger(__name__)

_ROWS = 4096  # engines, those that are gone included
_KEY = 64  # bytes of an engine's key
_CELLS = 2  # of each worker: requests, tokens
_CELL = 8  # bytes


class Shared:
    """One worker's view."""

    def __init__(self, fd: int, worker: int, workers: int, keys: int) -> None:
        """`fd` is that of `create`'s file."""
        self._fd = fd
        self._worker = worker
        self._stride = _KEY + workers * _CELLS * _CELL
        self._memory = memoryview(mmap.mmap(fd, _size(workers, keys)))
        self._loads: dict[str, Load] = {}
        self.usage = self._memory[_ROWS * self._stride :]  # for a UsageTable

    def load_of(self, key: str) -> Load:
        """The load of an engine, which all workers write to and read together; the same as long as this process lives.

        What had been assigned to an engine before it was removed is not done when it comes back.
        """
        load = self._loads.get(key)
        if load is not None:
            return load
        start = self._row(key.encode())
        if start is None:
            log.warning("no room in the table of engines: this worker does not know what others assign to %s", key)
            return Load()
        load = Load(self._memory[start + _KEY : start + self._stride].cast("q"), self._worker)
        self._loads[key] = load
        return load

    def clear(self, worker: int) -> None:
        """Take back all that a worker has assigned: it is dead."""
        for start in range(0, _ROWS * self._stride, self._stride):
            if not self._memory[start]:
                return
            cells = self._memory[start + _KEY : start + self._stride].cast("q")
            cells[_CELLS * worker] = cells[_CELLS * worker + 1] = 0

    def _row(self, key: bytes) -> int | None:
        if len(key) > _KEY:  # an IPv6 address may have a zone of any length
            return None
        name = key.ljust(_KEY, b"\0")
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            for start in range(0, _ROWS * self._stride, self._stride):
                found = self._memory[start : start + _KEY]
                if found == name:
                    return start
                if not found[0]:
                    found[:] = name
                    return start
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
        return None


def create(workers: int, keys: int) -> int:
    """A new anonymous file of the right size, all zeros; its descriptor."""
    fd = os.memfd_create("pdctl-router")
    os.ftruncate(fd, _size(workers, keys))
    return fd


def _size(workers: int, keys: int) -> int:
    return _ROWS * (_KEY + workers * _CELLS * _CELL) + size_needed(workers, keys)
