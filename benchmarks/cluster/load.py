"""A steady load that counts: every answer is known, and one that is another has failed."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

import httpx

from tests.e2e.chaos_deployment import LIMIT_S
from tests.e2e.chaos_load import Known, ask


@dataclass
class Count:
    """What the clients have seen."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    ending: threading.Event = field(default_factory=threading.Event)

    @property
    def total(self) -> int:
        """The requests that were sent and have come to an end."""
        return self.answered + len(self.failures)

    @property
    def availability(self) -> float:
        """The share of requests that were answered as they should, in %."""
        return 100 * self.answered / self.total if self.total else 0.0

    def take(self, failure: str | None, seconds: float) -> None:
        """Count a request."""
        with self.lock:
            self.slowest_s = max(self.slowest_s, seconds)
            if failure is None:
                self.answered += 1
            else:
                self.failures.append(failure)


@contextmanager
def counted_load(url: str, known: list[Known], clients: int, pause_s: float) -> Iterator[Count]:
    """Have so many clients ask one thing after the other inside the block, with a pause in between."""
    count, turns = Count(), itertools.cycle(known)
    threads = [threading.Thread(target=_client, args=(count, url, turns, pause_s), daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield count
    finally:
        count.ending.set()
        for thread in threads:
            thread.join(LIMIT_S)
    if any(thread.is_alive() for thread in threads):
        count.failures.append(f"a request had no answer after {LIMIT_S:g} s")


def _client(count: Count, url: str, turns: Iterator[Known], pause_s: float) -> None:
    with httpx.Client(base_url=url, timeout=LIMIT_S, verify=False, trust_env=False) as http:
        while not count.ending.wait(pause_s):
            request, known = next(turns)
            began = monotonic()
            failure = None
            try:
                answer = ask(http, request)
                if answer != known:
                    failure = f"{answer} instead of {known}"
            except Exception as error:  # whatever it is, it is what the client gets
                failure = repr(error)
            count.take(failure, monotonic() - began)
