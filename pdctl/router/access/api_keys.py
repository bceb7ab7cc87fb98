"""API keys: who may send requests, and how many in a minute, counted over all worker processes."""

import hmac
import math
import os
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pdctl.errors import PdctlError

ENVIRONMENT = "PDCTL_API_KEY"
WINDOW = 60  # seconds that a limit is for, and as many before the current one are counted
_SLOTS = 64  # more than the window: an old one is not overwritten while another process still reads it
_STAMP, _REQUESTS, _TOKENS, _ROW = 0, 1, 2 + _SLOTS, 3 + 2 * _SLOTS  # where things are in a row
_CELL = 8  # bytes


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. What it is compared with is its hash: the key itself is not kept."""

    index: int  # its row in the table of usage
    name: str
    digest: bytes
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """All keys, of which a request has to carry one."""

    keys: list[ApiKey]

    def find(self, authorization: bytes) -> ApiKey | None:
        """The key in an Authorization header's value; how long it takes says nothing about the keys."""
        kind, _, given = authorization.partition(b" ")
        if kind.lower() != b"bearer":
            return None
        digest, found = sha256(given.strip()).digest(), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def load_api_keys(path: Path | None) -> ApiKeys | None:
    """The keys of a file, or the one in the environment; None without either. PdctlError if they are wrong."""
    alone = os.environ.get(ENVIRONMENT)
    if path is not None and alone is not None:
        raise PdctlError(f"API keys are given twice: in {path} and in {ENVIRONMENT}; give one of them")
    if path is not None:
        from pdctl.router.access.api_key_file import read_key_file  # not above: pydantic takes 13 MB in each process

        return ApiKeys(
            [
                ApiKey(index, entry.name, _digest(entry.key), entry.requests_per_minute, entry.tokens_per_minute)
                for index, entry in enumerate(read_key_file(path))
            ]
        )
    if alone is None:
        return None
    try:
        check_key(alone)
    except ValueError as error:
        raise PdctlError(f"{ENVIRONMENT}: {error}") from None
    return ApiKeys([ApiKey(0, "default", _digest(alone))])


def size_needed(workers: int, keys: int) -> int:
    """Bytes of zeros that a UsageTable needs."""
    return workers * keys * _ROW * _CELL


class UsageTable:
    """How much each key has used, in memory that all workers share. Each writes its own rows only and reads all.

    A row has the second that it was written in last, and for requests and for tokens their sum since the start and
    what that sum was at the start of each of the last seconds: what the window holds is the difference of two cells.
    Workers that admit at the same instant do not see each other: a limit can be exceeded by one request of each.
    """

    def __init__(
        self,
        memory: memoryview,
        worker: int,
        workers: int,
        keys: int,
        clock: Callable[[], float] = time.monotonic,  # of the whole machine
    ) -> None:
        """`memory` has `size_needed` bytes, all 0 at the start; what a worker's predecessor wrote is gone on with."""
        self._cells = memory.cast("B").cast("q")
        self._first = [worker * keys * _ROW + key * _ROW for key in range(keys)]  # the own row of each key
        self._rows = [[other * keys * _ROW + key * _ROW for other in range(workers)] for key in range(keys)]
        self._clock = clock

    def admit(self, key: ApiKey, tokens: int) -> float:
        """Count a request with a prompt of that many tokens and return 0, or the seconds after which to try again.

        Infinity: the prompt alone is over the limit.
        """
        requests_limit, tokens_limit = key.requests_per_minute, key.tokens_per_minute
        if requests_limit is None and tokens_limit is None:
            return 0.0
        now, wait = self._clock(), 0.0
        if requests_limit is not None:
            wait = self._wait(key.index, _REQUESTS, now, requests_limit - 1)
        if tokens_limit is not None:
            wait = max(wait, self._wait(key.index, _TOKENS, now, tokens_limit - tokens))
        if wait == 0:
            self._count(key.index, int(now), 1, tokens)
        return wait

    def spend(self, key: ApiKey, tokens: int) -> None:
        """Count tokens that were generated: never refused, but missing for later requests."""
        if key.tokens_per_minute is not None:
            self._count(key.index, int(self._clock()), 0, tokens)

    def _wait(self, key: int, kind: int, now: float, room: int) -> float:
        """Seconds until the window holds no more than `room`."""
        second = int(now)
        if self._used(key, kind, second - WINDOW) <= room:
            return 0.0
        if room < 0:
            return math.inf
        later = bisect_left(range(1, WINDOW + 1), -room, key=lambda s: -self._used(key, kind, second - WINDOW + s)) + 1
        return second + later - now

    def _used(self, key: int, kind: int, since: int) -> int:
        """What all workers counted from the beginning of a second on, one of the last 60."""
        cells, used = self._cells, 0
        for row in self._rows[key]:
            if cells[row + _STAMP] >= since:
                used += cells[row + kind] - cells[row + kind + 1 + since % _SLOTS]
        return used

    def _count(self, key: int, second: int, requests: int, tokens: int) -> None:
        cells, row = self._cells, self._first[key]
        stamp = cells[row + _STAMP]
        if stamp < second:
            for kind in (_REQUESTS, _TOKENS):
                total = cells[row + kind]
                for one in range(max(stamp + 1, second - _SLOTS + 1), second + 1):
                    cells[row + kind + 1 + one % _SLOTS] = total
            cells[row + _STAMP] = second  # after the cells that it makes valid
        cells[row + _REQUESTS] += requests
        cells[row + _TOKENS] += tokens


def check_key(key: object) -> object:
    """A key that clients can send. ValueError says why it is none."""
    if not isinstance(key, str):  # and do not say what it is
        raise ValueError("expected text: put the key in quotes")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("a key has printable ASCII characters without spaces, at least one")
    return key


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()
