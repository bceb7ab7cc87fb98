"""Which engine holds the KV of which prompts' beginnings: what engines publish, else what they were assigned.

A prompt is its JSON value as the client sent it, cut into chunks; a chunk's key stands for it and all before it, so
that equal keys mean equal beginnings. Engines that publish compute the same keys.
"""

from collections.abc import Collection, Iterable
from hashlib import blake2b

CHUNK_BYTES = 256
KEY_BYTES = 8
MAX_PUBLISHED = 262_144  # keys of one instance: 64 MiB of prompts, about 25 MB here

_HISTORY = 50_000  # keys remembered for an instance that does not publish
_EXPECTED = 2048  # keys that an instance which publishes was assigned, but may not have stored yet
_EXPECTED_SECONDS = 30.0


def prefix_keys(value: bytes) -> list[bytes]:
    """The key of each whole chunk."""
    keys = []
    key = b""
    for start in range(0, len(value) - CHUNK_BYTES + 1, CHUNK_BYTES):
        key = blake2b(key + value[start : start + CHUNK_BYTES], digest_size=KEY_BYTES).digest()
        keys.append(key)
    return keys


class PrefixIndex:
    """What each instance, by its `host:port`, holds. Bounded for each instance; `check` drops those that are gone."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def matched(self, instance: str, prefix: Iterable[bytes]) -> int:
        """How many leading keys an instance holds, or will soon."""
        held = self._held.get(instance)
        if held is None:
            return 0
        published, newer, older = held.published or (), held.newer, held.older
        count = 0
        for key in prefix:
            if key not in published and key not in newer and key not in older:
                break
            count += 1
        return count

    def assigned(self, instance: str, prefix: Iterable[bytes]) -> None:
        """A request was given to an instance."""
        held = self._held.get(instance)
        if held is None:
            held = self._held[instance] = _Held()
        if len(held.newer) >= held.room:
            held.rotate()
        held.newer.update(prefix)

    def reset(self, instance: str, stored: Collection[bytes]) -> None:
        """An instance publishes all that it holds. ValueError: more than MAX_PUBLISHED keys."""
        held = self._held.get(instance)
        if held is None or held.published is None:
            held = _Held()  # what it really holds replaces what was thought
            held.room = _EXPECTED // 2
        held.published = set()
        self._held[instance] = held
        self.update(instance, stored, ())

    def update(self, instance: str, stored: Collection[bytes], removed: Collection[bytes]) -> None:
        """An instance that has reset publishes a change; a key in both is stored. ValueError: as for `reset`."""
        held = self._held[instance]
        assert held.published is not None, f"{instance} has not reset"
        held.published.difference_update(removed)
        held.published.update(stored)
        held.newer.difference_update(stored)  # from now on its removal is published too
        held.older.difference_update(stored)
        if len(held.published) > MAX_PUBLISHED:
            raise ValueError(f"more than {MAX_PUBLISHED} prefix keys are published")

    def forget(self, instance: str) -> None:
        """An instance is gone, or publishes no more: what it holds is not known."""
        self._held.pop(instance, None)

    def check(self, now: float, instances: Collection[str]) -> None:
        """Forget all other instances, and what publishing ones were assigned long ago. Called once a tick."""
        for instance in [key for key in self._held if key not in instances]:
            del self._held[instance]
        for held in self._held.values():
            if held.published is not None and now >= held.rotate_at:
                held.rotate_at = now + _EXPECTED_SECONDS / 2
                held.rotate()


class _Held:
    """What one instance holds.

    Assigned keys are in two generations: the older one goes when the newer one is full or, if it publishes, has its
    age. A prompt's use renews all its keys, and costs one set update.
    """

    __slots__ = ("newer", "older", "published", "room", "rotate_at")

    def __init__(self) -> None:
        self.published: set[bytes] | None = None  # None: it does not publish
        self.newer: set[bytes] = set()
        self.older: set[bytes] = set()
        self.room = _HISTORY // 2  # keys in a generation, but for one prompt's more
        self.rotate_at = 0.0

    def rotate(self) -> None:
        self.older, self.newer = self.newer, set()
