"""Which texts the prefix cache holds, by keys that mean nothing to the scheduler, and who is told of changes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

MAX_KEYS = 256  # of one block's content. Where a text ends is estimated: many that only begin alike may meet in a block


class Changes(NamedTuple):
    """The difference between two moments: a key is in one of the lists at most."""

    stored: list[bytes]
    removed: list[bytes]


@dataclass(slots=True, eq=False)
class Watch:
    """What has changed since its owner took it last."""

    notify: Callable[[], object]  # called in the writer's thread when there is something to take; must not block
    changes: dict[bytes, bool]  # key: whether it is held now. Never more than was held then and is held now


class HeldText:
    """The text keys that end in each block's content. Written by the engine core's thread; watched from any thread."""

    def __init__(self) -> None:
        self._keys: dict[bytes, dict[bytes, None]] = {}  # by content, the last noted last; only the writer looks at it
        self._lock = threading.Lock()  # guards what follows
        self._contents: dict[bytes, int] = {}  # key: in how many contents it ends
        self._watches: set[Watch] = set()

    def add(self, content: bytes, key: bytes) -> None:
        """Note that the text called `key` ends in this content, which the cache holds; of too many, the oldest goes."""
        keys = self._keys.setdefault(content, {})
        if key in keys:
            del keys[key]  # and put at the end
            keys[key] = None
            return
        keys[key] = None
        with self._lock:
            self._contents[key] = self._contents.get(key, 0) + 1
            if self._contents[key] == 1:
                self._tell(key, True)
            if len(keys) > MAX_KEYS:
                oldest = next(iter(keys))
                del keys[oldest]
                self._leave(oldest)

    def drop(self, content: bytes) -> None:
        """Note that the cache holds this content no more."""
        keys = self._keys.pop(content, None)
        if keys is None:
            return
        with self._lock:
            for key in keys:
                self._leave(key)

    @contextmanager
    def watch(self, notify: Callable[[], object]) -> Iterator[Watch]:
        """Collect changes inside the block. The first ones to be taken are all the keys that are held."""
        with self._lock:
            watch = Watch(notify, dict.fromkeys(self._contents, True))
            self._watches.add(watch)
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.remove(watch)

    def take(self, watch: Watch) -> Changes:
        """Return what has changed since the last call, in sum: what came and went in between is not in it."""
        with self._lock:
            changes, watch.changes = watch.changes, {}
        stored = [key for key, held in changes.items() if held]
        return Changes(stored, [key for key, held in changes.items() if not held])

    def _leave(self, key: bytes) -> None:
        self._contents[key] -= 1
        if not self._contents[key]:
            del self._contents[key]
            self._tell(key, False)

    def _tell(self, key: bytes, held: bool) -> None:
        for watch in self._watches:
            if key in watch.changes:  # changed back
                del watch.changes[key]
                continue
            watch.changes[key] = held
            if len(watch.changes) == 1:
                watch.notify()
